"""The entry point: registers every command and turns errors into one line and an exit code.

Command modules import only what parsing needs; torch and the recipes load inside the commands,
so that `gpukit --help` answers at once.
"""

import gc
import io
import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from gpukit import __version__
from gpukit.errors import GpukitError, one_line
from gpukit_cli import surroundings

app = typer.Typer(
    name="gpukit",
    help="From a Hugging Face checkpoint to a quantised, checked GGUF that runs, in one pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gpukit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _register() -> None:
    from gpukit_cli import bench, convert, doctor, inspect, run, store

    models = "Models"
    app.command(rich_help_panel=models)(store.create)
    app.command(rich_help_panel=models)(run.run)
    app.command(name="list", rich_help_panel=models)(store.list_models)
    app.command(rich_help_panel=models)(store.show)
    app.command(rich_help_panel=models)(store.cp)
    app.command(rich_help_panel=models)(store.rm)
    toolkit = "Toolkit"
    app.command(rich_help_panel=toolkit)(convert.convert)
    app.command(rich_help_panel=toolkit)(convert.quantize)
    app.command(rich_help_panel=toolkit)(inspect.inspect)
    app.command(rich_help_panel=toolkit)(bench.bench)
    app.command(rich_help_panel=toolkit)(doctor.doctor)


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
        _fail(str(error), error.exit_code)
    except surroundings.Ended as ended:
        _fail(str(ended), ended.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (`gpukit list | head -1`); nobody is left to tell.
        surroundings.silence()
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1)
    except Exception as error:
        if os.environ.get("GPUKIT_TRACEBACK"):
            raise
        _fail(_unexpected(error), 1)


def _command() -> None:
    """The command that the arguments name, and all that it prints."""
    try:
        _register()
        app()
    except SystemExit:
        # At the end of the process it would be too late to tell of a full disk.
        surroundings.flush()
        raise


def _unexpected(error: Exception) -> str:
    kernels = sys.modules.get("gpukit_kernels.errors")
    if kernels is not None and isinstance(error, kernels.QuantError):
        return str(error)
    return (
        f"{type(error).__name__}: {error} (a bug in gpukit: please report it with the traceback "
        "that GPUKIT_TRACEBACK=1 prints)"
    )


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):
        print("Error: " + one_line(" ".join(message.split())), file=sys.stderr)
    surroundings.silence()
    sys.exit(code)
