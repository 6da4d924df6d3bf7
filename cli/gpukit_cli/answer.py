"""How an answer is shown: its text as it comes, then its times."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpukit_cli.progress import reporter

if TYPE_CHECKING:
    from gpukit.events import Event
    from gpukit.generation.generate import Generation, Stream


def show(pieces: "Stream", write: Callable[[str], None]) -> "Generation":
    """The whole answer, each piece of which was given to `write`."""
    for piece in pieces:
        write(piece)
    return pieces.result


def write(text: str) -> None:
    """Print `text` as it is, at once."""
    print(text, end="", flush=True)


def tell(told: "list[Event]", quiet: bool) -> None:
    """Report what has waited until the text was out, and forget it."""
    if not told:
        return
    with reporter(quiet) as report:
        for event in told:
            report(event)
    told.clear()


def print_times(result: "Generation") -> None:
    """Ollama's lines; what is zero is left out. Of a prompt that goes on where an earlier answer
    ended, the rate is that of the tokens that were new."""
    answer, new = len(result.tokens), result.prompt_tokens - result.remembered_tokens
    rows: list[tuple[str, str]] = [
        ("total duration:", duration(result.total_seconds)),
        ("load duration:", duration(result.load_seconds)),
        ("prompt eval count:", f"{result.prompt_tokens} token(s)"),
        ("prompt eval duration:", duration(result.prompt_seconds)),
        ("prompt eval rate:", _rate(new, result.prompt_seconds)),
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
