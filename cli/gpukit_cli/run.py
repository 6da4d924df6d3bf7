"""`gpukit run`: a model speaks."""

import json as jsonlib
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit.errors import ArgumentError
from gpukit_cli import answer
from gpukit_cli.options import (
    Adapters,
    Devices,
    Hub,
    Json,
    MoeLayout,
    Pre,
    Quiet,
    Strict,
    stored_names,
)
from gpukit_cli.output import print_json
from gpukit_cli.progress import reporter

if TYPE_CHECKING:
    from gpukit.events import Event
    from gpukit.generation.form import Format
    from gpukit.generation.generate import Generation
    from gpukit.generation.model import Model, Parameters


def _parameter(flag: str, metavar: str, text: str, default: str) -> Any:
    """An option over a parameter of the model's Modelfile."""
    shown = f"the Modelfile's, else {default}"
    return typer.Option(flag, metavar=metavar, help=text, show_default=shown)


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name in the store, a GGUF, a model folder, or hf.co/org/name.",
            autocompletion=stored_names,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to answer or continue; what stdin holds goes before it.",
            show_default="stdin alone, or a conversation",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="TEXT",
            help="System text, which may be empty.",
            show_default="the Modelfile's",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        _parameter("--temperature", "X", "How freely to pick; 0 takes the likeliest token.", "0.8"),
    ] = None,
    top_k: Annotated[
        int | None,
        _parameter("--top-k", "K", "Pick among the K likeliest tokens; 0: all.", "40"),
    ] = None,
    top_p: Annotated[
        float | None,
        _parameter(
            "--top-p", "P", "Pick among the likeliest that reach this share together.", "0.9"
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        _parameter("--min-p", "P", "Pick among tokens with this share of the likeliest's.", "0"),
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        _parameter("--repeat-penalty", "X", "Above 1: repeat less.", "1"),
    ] = None,
    repeat_last_n: Annotated[
        int | None,
        _parameter("--repeat-last-n", "N", "Tokens that the penalty looks back at; -1: all.", "64"),
    ] = None,
    seed: Annotated[
        int | None,
        _parameter("--seed", "N", "The same seed gives the same text.", "another each time"),
    ] = None,
    stop: Annotated[
        list[str] | None,
        _parameter("--stop", "TEXT", "End before this text; may be repeated.", "none"),
    ] = None,
    num_predict: Annotated[
        int | None,
        _parameter("--num-predict", "N", "Tokens at most; -1: no limit.", "-1"),
    ] = None,
    num_ctx: Annotated[
        int | None,
        _parameter("--num-ctx", "N", "Tokens of context.", "4096 or what the model has, if less"),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="json, or a file with a JSON schema that the answer fits; needs llguidance.",
            show_default="any text",
        ),
    ] = None,
    adapter: Adapters = None,
    strict: Strict = False,
    moe_layout: MoeLayout = None,
    pre: Pre = None,
    hub: Hub = False,
    device: Devices = "auto",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print times on stderr, --quiet or not.")
    ] = False,
    nowordwrap: Annotated[
        bool,
        typer.Option("--nowordwrap", help="In a conversation, let the terminal break lines."),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a model: print what it answers to PROMPT, or to what comes on stdin; on a terminal and
    without either, talk with it."""
    import gpukit

    given: Parameters = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last_n": repeat_last_n,
        "seed": seed,
        "stop": stop,
        "num_predict": num_predict,
        "num_ctx": num_ctx,
        "format": _format(format),
    }
    adapters = adapter or []
    _check(model, given, adapters, device, pre, hub, format)
    talks = not prompt and not json and sys.stdin.isatty() and sys.stdout.isatty()
    text = "" if talks else _prompt(prompt or [])
    # The bars of a terminal are gone before the text comes.
    with reporter(quiet) as report:
        loaded = gpukit.load(
            model, device, pre=pre, hub=hub, adapters=adapters, strict=strict,
            moe_layout=moe_layout, report=report,
        )  # fmt: skip
    if talks:
        from gpukit_cli.session import Conversation, talk

        begun = Conversation(
            model, hub=hub, device=device, adapted=bool(adapters),
            verbose=verbose, quiet=quiet, wraps=not nowordwrap,
        )  # fmt: skip
        talk(begun, loaded, system, given)
        return
    result = _speak(loaded, text, system, given, quiet, shown=not json)
    if json:
        print_json({"model": model, **result.as_json()})
    if verbose:
        answer.print_times(result)


def _prompt(words: list[str]) -> str:
    """What stdin holds when it is no terminal, then the words; `ArgumentError` for nothing."""
    from gpukit.evaluation.windows import decoded

    wanted = "a prompt in UTF-8 is wanted"
    # Bytes that are no UTF-8 come as surrogates.
    said = " ".join(words).encode("utf-8", "surrogateescape")
    parts = [decoded(said, "PROMPT", wanted)]
    if not sys.stdin.isatty():
        there = decoded(sys.stdin.buffer.read(), "standard input", wanted)
        # Lines end in \n, whatever they end in there.
        parts.insert(0, StringIO(there, newline=None).read())
    text = " ".join(part for part in parts if part)
    if not text:
        raise ArgumentError('no prompt; give one, as in gpukit run MODEL "Once upon a time"')
    return text


def _format(word: str | None) -> "Format | None":
    """`json` itself, or the schema in the file that is named."""
    if word is None or word == "json":
        return word
    try:
        schema = jsonlib.loads(Path(word).read_bytes())
    except OSError as error:
        raise ArgumentError(
            f"--format {word}: {error.strerror}; json or a file with a JSON schema is wanted"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--format {word}: this is no JSON schema: {error}") from None
    if not isinstance(schema, dict):
        raise ArgumentError(f"--format {word}: this is no JSON schema: an object is wanted")
    return schema


def _check(
    word: str,
    given: "Parameters",
    adapters: list[str],
    device: str,
    pre: str | None,
    hub: bool,
    form: str | None,
) -> None:
    """What is wrong with the request shows before stdin is read and anything is fetched."""
    from gpukit.conversion.checks import check_device, check_plan
    from gpukit.recipes.references import locate

    check_plan(None, pre)
    check_device(device)
    locate(word, hub=hub)
    if adapters:
        from gpukit.recipes.chosen import located

        located(adapters)

    from gpukit.generation.form import grammar_of
    from gpukit.generation.generate import options_from

    if (schema := given.get("format")) is not None:
        try:
            grammar_of(schema)
        except ArgumentError as error:
            fault = str(error).removeprefix("format: ")
            raise ArgumentError(f"--format {form}: {fault}") from None
    options_from({}, given)


def _speak(
    model: "Model", text: str, system: str | None, given: "Parameters", quiet: bool, shown: bool
) -> "Generation":
    """The whole answer; its text is printed as it comes if it is to be `shown`."""
    told: list[Event] = []
    pieces = model.stream(text, system=system, report=told.append, **given)
    answer.tell(told, quiet)
    result = answer.show(pieces, answer.write) if shown else pieces.result
    if shown:
        print("\n", flush=True)
    # What there was to say meanwhile has waited until the text is out.
    answer.tell(told, quiet)
    return result
