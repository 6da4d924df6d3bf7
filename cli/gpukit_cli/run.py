"""`gpukit run`: a model speaks."""

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpukit.recipes.generate import Generation
    from gpukit.store.store import ResolvedModel


def run(
    model: Annotated[str, typer.Argument(help="A name in the store, a .gguf file or a folder.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="What to continue or answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the K likeliest; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep what reaches this share.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep this share of the likeliest.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text.")] = None,
    num_predict: Annotated[int | None, typer.Option(help="Tokens at most.")] = None,
    num_ctx: Annotated[int | None, typer.Option(help="Tokens of context.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", help="Print times on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Run a model: print what it answers to PROMPT, or to what comes on stdin."""
    text = _prompt(prompt or [])
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "stop": stop,
        "num_predict": num_predict,
        "num_ctx": num_ctx,
    }
    result = _speak(_resolve(model), text, given, device, quiet=json)
    if json:
        print(jsonlib.dumps({"model": model, **result.as_json()}, ensure_ascii=False))
    else:
        print("\n")
    if verbose:
        _print_times(result)


def _prompt(words: list[str]) -> str:
    from gpukit.errors import ArgumentError

    text = " ".join(words)
    if not sys.stdin.isatty():
        try:
            piped = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ArgumentError(f"stdin is no UTF-8: {error}") from None
        text = f"{piped} {text}".strip(" ") if piped else text
    if not text:
        raise ArgumentError('no prompt; give one, as in gpukit run MODEL "Once upon a time"')
    return text


def _resolve(model: str) -> "ResolvedModel":
    from gpukit.store import Store
    from gpukit.store.store import ResolvedModel

    if Path(model).is_dir():
        return ResolvedModel(Path(model))
    return Store().resolve(model)


def _speak(
    found: "ResolvedModel", text: str, given: dict[str, Any], device: str, quiet: bool
) -> "Generation":
    from gpukit.events import Warned
    from gpukit.recipes.generate import generate, load_model, options_from, prompt_ids
    from gpukit_cli.progress import reporter

    with reporter() as report:
        options = options_from(found.params, given, report)
        loaded = load_model(found.gguf, device)
        if found.template and loaded.tokenizer.chat_template is None:
            report(Warned("TEMPLATE is in Go's syntax and is not used; the prompt goes in bare"))
        messages = [{"role": m.role, "content": m.content} for m in found.messages]
        ids = prompt_ids(loaded, text, system=found.system, messages=messages, report=report)
    return generate(loaded, ids, options, (lambda _piece: None) if quiet else _print)


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def _print_times(result: "Generation") -> None:
    """Ollama's lines."""
    answer = len(result.tokens)
    total = result.load_seconds + result.prompt_seconds + result.seconds
    rows = [
        ("total duration:", f"{total:.3f}s"),
        ("load duration:", f"{result.load_seconds:.3f}s"),
        ("prompt eval count:", f"{result.prompt_tokens} token(s)"),
        ("prompt eval duration:", f"{result.prompt_seconds:.3f}s"),
        ("prompt eval rate:", _rate(result.prompt_tokens, result.prompt_seconds)),
        ("eval count:", f"{answer} token(s)"),
        ("eval duration:", f"{result.seconds:.3f}s"),
        ("eval rate:", _rate(answer, result.seconds)),
    ]
    for name, value in rows:
        print(f"{name:<22}{value}", file=sys.stderr)


def _rate(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-9):.2f} tokens/s"
