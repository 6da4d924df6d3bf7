"""Draws a recipe's events on stderr: bars on a terminal, plain lines elsewhere.

with reporter() as report:
    recipe(..., report=report)
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpukit.events import Event, Report, Status, Step, Warned, ignore

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

# A log file should show that work goes on without filling up.
PLAIN_SECONDS = 10.0


@contextmanager
def reporter(quiet: bool = False, *, bars: bool = True) -> Iterator[Report]:
    """A `Report` that draws on stderr until the block ends; stdout is left to the result.

    A `quiet` one draws nothing, warnings neither; one without `bars` leaves a terminal to what is
    printed meanwhile.
    """
    if quiet:
        yield ignore
    elif bars and sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


class _PlainLines:
    """One line a status; of a long stage, its start, its end and a line every ten seconds."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._started = 0.0
        self._printed = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Status(text):
                self._begin(text)
            case Warned(text):
                _line(f"warning: {text}")
            case Step(text):
                if text != self._stage:
                    self._begin(text)
                self._step(event)

    def _begin(self, text: str) -> None:
        self._stage = text
        self._started = self._printed = time.monotonic()
        _line(text)

    def _step(self, step: Step) -> None:
        now = time.monotonic()
        if now - self._printed < PLAIN_SECONDS:
            return
        self._printed = now
        rate = step.done / max(now - self._started, 1e-9)
        left = f", {(step.total - step.done) / rate:.0f} s left" if rate > 0 else ""
        share = 100 * step.done // max(step.total, 1)
        _line(f"{step.text}: {share} %, {_amount(step.done, step.total, step.unit)}, "
              f"{_speed(rate, step.unit)}{left}")  # fmt: skip


def _amount(done: int, total: int, unit: str) -> str:
    if unit != "bytes":
        return f"{done} of {total} {unit}"
    return f"{human_bytes(done)} of {human_bytes(total)}"


def _speed(rate: float, unit: str) -> str:
    if unit == "bytes":
        return f"{human_bytes(int(rate))}/s"
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"


@contextmanager
def _bars() -> Iterator[Report]:
    """A bar a stage with amount, rate and time left; finished stages stay on the screen."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True, highlight=False)
    bars: dict[str, TaskID] = {}
    waiting: str | None = None  # a status whose first step has not come: bar or plain line?

    with Progress(*_columns(), console=console) as progress:

        def settle() -> None:
            nonlocal waiting
            if waiting is not None:
                console.print(waiting, markup=False)
                waiting = None

        def report(event: Event) -> None:
            nonlocal waiting
            match event:
                case Status(text):
                    settle()
                    waiting = text
                case Warned(text):
                    settle()
                    console.print(f"warning: {text}", markup=False, style="yellow")
                case Step(text, done, total, unit):
                    if text == waiting:
                        waiting = None
                    settle()
                    if text not in bars:
                        bars[text] = progress.add_task(text, total=total, unit=unit)
                    progress.update(bars[text], completed=done, total=total)

        try:
            yield report
        finally:
            settle()


def _columns() -> "tuple[ProgressColumn, ...]":
    """What stands in a row of the bars."""
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            done, total = int(task.completed), int(task.total or 0)
            return Text(_amount(done, total, task.fields["unit"]), style="progress.download")

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            shown = "?" if rate is None else _speed(rate, task.fields["unit"])
            return Text(shown, style="progress.data.speed")

    return (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.percentage:>3.0f}%"),
        BarColumn(),
        Amount(),
        Speed(),
        TimeRemainingColumn(),
    )


def human_bytes(n: int) -> str:
    """`n` bytes in decimal units as Ollama writes them: `4.7 GB`, no decimals from 10 on."""
    value = float(n)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{n} B"
    # Ollama cuts decimals off, and leaves them out of whole numbers.
    return f"{int(value)} {unit}" if value >= 10 or value.is_integer() else f"{value:.1f} {unit}"


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
