"""`gpukit run`: a model speaks."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit.errors import ArgumentError
from gpukit.events import Event, Warned
from gpukit_cli.output import print_json
from gpukit_cli.progress import reporter

if TYPE_CHECKING:
    from gpukit.generation.generate import Generation
    from gpukit.store.store import ResolvedModel


def run(
    model: Annotated[str, typer.Argument(help="A name in the store, a .gguf file or a folder.")],
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to answer or continue; stdin goes before it.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the K likeliest; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep what reaches this share.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep this share of the likeliest.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    repeat_last_n: Annotated[
        int | None, typer.Option(help="Tokens that penalties look back at; -1: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text.")] = None,
    num_predict: Annotated[int | None, typer.Option(help="Tokens at most; -1: no limit.")] = None,
    num_ctx: Annotated[int | None, typer.Option(help="Tokens of context.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", help="Print times on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Run a model: print what it answers to PROMPT, or to what comes on stdin."""
    given = {
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
    }
    found = _resolve(model)
    result, told = _speak(found, _prompt(prompt or []), given, device, quiet=json)
    if json:
        print_json({"model": model, **result.as_json()})
    else:
        print("\n", flush=True)
    with reporter() as report:
        for event in told:
            report(event)
    if verbose:
        _print_times(result)


def _prompt(words: list[str]) -> str:
    """What stdin holds when it is no terminal, then the words; `ArgumentError` for nothing."""
    parts = [" ".join(words)]
    try:
        if not sys.stdin.isatty():
            parts.insert(0, sys.stdin.read())
        text = " ".join(part for part in parts if part)
        text.encode()
    except UnicodeError as error:
        raise ArgumentError(f"the prompt is no UTF-8: {error}") from None
    if not text:
        raise ArgumentError('no prompt; give one, as in gpukit run MODEL "Once upon a time"')
    return text


def _resolve(model: str) -> "ResolvedModel":
    from gpukit.formats.paths import expanded
    from gpukit.store import Store
    from gpukit.store.store import ResolvedModel

    path = expanded(model)
    # A folder that holds no checkpoint does not hide a model of the same name.
    if path.is_dir() and (model.startswith(("/", ".", "~")) or (path / "config.json").exists()):
        return ResolvedModel(path)
    return Store().resolve(model)


def _speak(
    found: "ResolvedModel", text: str, given: dict[str, Any], device: str, quiet: bool
) -> "tuple[Generation, list[Event]]":
    from gpukit.generation.generate import generate, load_model, options_from, prompt_ids

    # The bars of a terminal are gone before the text comes.
    with reporter() as report:
        options = options_from(found.params, given, report)
        loaded = load_model(found.gguf, device)
        if found.template and loaded.tokenizer.chat_template is None:
            report(Warned("TEMPLATE is in Go's syntax and is not used; the prompt goes in bare"))
        messages = [{"role": m.role, "content": m.content} for m in found.messages]
        ids = prompt_ids(loaded, text, system=found.system, messages=messages, report=report)
    # What there is to say meanwhile waits until the text is out.
    told: list[Event] = []
    result = generate(loaded, ids, options, _ignore if quiet else _print, told.append)
    return result, told


def _ignore(_piece: str) -> None:
    pass


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def _print_times(result: "Generation") -> None:
    """Ollama's lines; what is zero is left out."""
    answer = len(result.tokens)
    rows: list[tuple[str, str]] = [
        ("total duration:", duration(result.total_seconds)),
        ("load duration:", duration(result.load_seconds)),
        ("prompt eval count:", f"{result.prompt_tokens} token(s)"),
        ("prompt eval duration:", duration(result.prompt_seconds)),
        ("prompt eval rate:", _rate(result.prompt_tokens, result.prompt_seconds)),
    ]
    if answer:
        rows += [
            ("eval count:", f"{answer} token(s)"),
            ("eval duration:", duration(result.seconds)),
            ("eval rate:", _rate(answer, result.seconds)),
        ]
    for name, value in rows:
        print(f"{name:<22}{value}", file=sys.stderr)


def _rate(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-9):.2f} tokens/s"


def duration(seconds: float) -> str:
    """A duration as Go spells it: 1h2m3.5s, 4.2s, 15.000001ms, 7µs."""
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanoseconds < 1000 * size:
            return _plain(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60 * 1_000_000_000)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{front}{_plain(rest, 1_000_000_000)}s"


def _plain(nanoseconds: int, size: int) -> str:
    whole, rest = divmod(nanoseconds, size)
    digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
