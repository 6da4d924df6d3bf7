"""The entry point: registers every command and turns errors into one line and an exit code.

Command modules import only what parsing needs; torch and the recipes load inside the commands,
so that `gpukit --help` answers at once.
"""

import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gpukit import __version__
from gpukit.errors import GpukitError
from gpukit_cli import surroundings
from gpukit_cli.examples import epilog
from gpukit_cli.output import complain

Commands = dict[str, Callable[..., None]]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gpukit {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def command_line() -> typer.Typer:
    """Every command with its help."""
    from gpukit_cli import (
        adapter,
        batch,
        bench,
        convert,
        create,
        doctor,
        evaluate,
        imatrix,
        inspect,
        merge,
        quantize,
        run,
        share,
        store,
        verify,
    )

    app = typer.Typer(
        name="gpukit",
        help="From a Hugging Face checkpoint to a quantised, checked GGUF that runs, in one pass.",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    models: Commands = {
        "create": create.create,
        "run": run.run,
        "list": store.list_models,
        "show": store.show,
        "cp": store.cp,
        "rm": store.rm,
        "gc": store.gc,
        "pull": share.pull,
        "push": share.push,
        "key": share.key,
    }
    toolkit: Commands = {
        "convert": convert.convert,
        "quantize": quantize.quantize,
        "merge": merge.merge,
        "adapter": adapter.adapter,
        "perplexity": evaluate.perplexity,
        "imatrix": imatrix.imatrix,
        "inspect": inspect.inspect,
        "batch": batch.batch,
        "verify": verify.verify,
        "bench": bench.bench,
        "doctor": doctor.doctor,
    }
    for panel, commands in (("Models", models), ("Toolkit", toolkit)):
        for name, command in commands.items():
            app.command(name, rich_help_panel=panel, epilog=epilog(name))(command)
    return app


def main() -> None:
    """Run the command line; exit code 0 done, 1 the work failed, 2 the arguments are wrong, 128 and
    the signal's number when told to end."""
    # Read by OpenMP when torch loads: how long a waiting thread spins before it sleeps. The default
    # is so long that two busy neighbours cost a third of the speed; none at all halves it on an
    # idle machine (measured on 2 cores: 20000 is best or level on both).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Importing torch and its compiler makes a million objects, none of them garbage: looking for
    # cycles every 700 of them takes a quarter of the 2.4 s.
    gc.set_threshold(200_000)
    surroundings.open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without UTF-8 shows every word as well as it can.
        sys.stdout.reconfigure(errors="replace")
    try:
        with surroundings.endings():
            _command()
    except GpukitError as error:
        _fail(_by_name(str(error)), error.exit_code)
    except typer.TyperException as error:
        _fail(_usage(error), error.exit_code)
    except surroundings.Ended as ended:
        _fail(str(ended), ended.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (`gpukit list | head -1`); nobody is left to tell.
        surroundings.silence()
        sys.exit(1)
    except OSError as error:
        said = error.strerror or str(error)
        if error.filename:
            _fail(f"{said}: {error.filename}", 1)
        # Whatever else is written has a name, and its errors tell it.
        _fail(f"standard output: {said}" if error.errno in FULL else said, 1)
    except Exception as error:
        if os.environ.get("GPUKIT_TRACEBACK"):
            raise
        _fail(_unexpected(error), 1)


def _command() -> None:
    """The command that the arguments name, and all that it prints."""
    try:
        words = sys.argv[1:]
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        sys.exit(command_line()(words, prog_name="gpukit", standalone_mode=False))
    except SystemExit:
        # At the end of the process it would be too late to tell of a full disk.
        surroundings.flush()
        raise


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the words of a command, what they may have meant, where its help is."""
    meant = getattr(error, "possibilities", None)
    text = error.message if meant else error.format_message().rstrip(".")
    if meant:
        text += f"; did you mean {' or '.join(sorted(meant))}?"
    context = getattr(error, "ctx", None)
    return f"{text} (see {context.command_path} --help)" if context else text


def _unexpected(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {error} (a bug in gpukit: please report it with the traceback "
        "that GPUKIT_TRACEBACK=1 prints)"
    )


def _by_name(message: str) -> str:
    """`message` with the name of a model for the path of its weights in the store, where it begins
    with that."""
    path, colon, rest = message.partition(": ")
    if "sha256-" not in path or not colon:
        return message
    from gpukit.store import Store

    with suppress(GpukitError, OSError):
        names = [name.display for name in Store().holding(Path(path))]
        # Of several that have the same weights, the one that was asked for, if any.
        said = [n for n in names if {n, n.removesuffix(":latest")} & {*sys.argv}] or names
        if len(said) == 1:
            return f"{said[0]}: {rest}"
    return message


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):
        complain(message)
    surroundings.silence()
    sys.exit(code)
