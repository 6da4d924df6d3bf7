"""Draws a batch on stderr: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpukit.batches.result import Told, Watch, unwatched
from gpukit.batches.states import State
from gpukit.events import Step, Warned
from gpukit_cli.progress import PLAIN_SECONDS, human_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

# Jobs that a table shows: the one under way, and the last ones before it.
SHOWN = 8


@contextmanager
def watcher(quiet: bool = False) -> Iterator[Watch]:
    """A `Watch` that draws on stderr until the block ends; a quiet one draws nothing."""
    if quiet:
        yield unwatched
    elif sys.stderr.isatty():
        with _table() as watch:
            yield watch
    else:
        yield _Lines()


class _Lines:
    """A line where a job begins, ends or warns, and every ten seconds one in between."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def __call__(self, told: Told) -> None:
        if isinstance(told.event, Step | Warned):
            self._meanwhile(told)
        elif told.event is None:
            self._state(told)

    def _state(self, told: Told) -> None:
        row, at = told.row, f"[{told.number}/{told.count}]"
        self._printed = time.monotonic()
        match row.state:
            case State.RUNNING:
                _line(f"{at} {row.output}")
            case State.DONE:
                size = human_bytes(row.size or 0)
                _line(f"{at} {row.output}: {size} in {row.seconds or 0:.1f} s")
            case _:
                _line(f"{at} {row.output}: {row.state}: {row.why}")

    def _meanwhile(self, told: Told) -> None:
        at, event = f"[{told.number}/{told.count}]", told.event
        if isinstance(event, Warned):
            _line(f"{at} warning: {event.text}")
        elif isinstance(event, Step) and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            _line(f"{at} {event.text}: {100 * event.done // max(event.total, 1)} %")


@contextmanager
def _table() -> Iterator[Watch]:
    """The last jobs with their states, the one under way with its share, rate and time left."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    board = Board()
    with Live(board.drawn(), console=console, refresh_per_second=8) as live:

        def watch(told: Told) -> None:
            if isinstance(told.event, Warned):
                console.print(f"warning: {told.event.text}", markup=False, style="yellow")
                return
            board.hear(told, time.monotonic())
            live.update(board.drawn())

        yield watch


class Board:
    """What the table shows."""

    def __init__(self) -> None:
        self._rows: dict[int, Told] = {}
        self._began: float | None = None
        self._job_began = 0.0
        self._now = 0.0
        self._step: Step | None = None
        self._ended: set[int] = set()
        self._count = 0

    def hear(self, told: Told, now: float) -> None:
        """Take up what a batch tells at the time `now`."""
        self._now, self._count = now, told.count
        if self._began is None:
            self._began = now
        if told.event is None:
            self._rows[told.number] = told
            self._step = None
            if told.row.state is State.RUNNING:
                self._job_began = now
            else:
                self._ended.add(told.number)
        elif isinstance(told.event, Step):
            self._step = told.event

    def cells(self) -> list[tuple[str, str, str]]:
        """Number, output and state of the jobs that are shown."""
        return [
            (f"{number}/{told.count}", told.row.output, self._state(told))
            for number, told in sorted(self._rows.items())[-SHOWN:]
        ]

    def _state(self, told: Told) -> str:
        row = told.row
        if row.state is State.DONE:
            return f"{human_bytes(row.size or 0)} in {row.seconds or 0:.1f} s"
        if row.state is not State.RUNNING:
            return f"{row.state}: {row.why}"
        step = self._step
        if step is None or not step.total:
            return str(row.state)
        rate = step.done / max(self._now - self._job_began, 1e-9)
        left = f", {(step.total - step.done) / rate:.0f} s left" if rate > 0 else ""
        return f"{100 * step.done // step.total} %, {human_bytes(int(rate))}/s{left}"

    def total(self) -> str:
        """How far the batch is, and how long the rest takes at its rate so far."""
        ended, passed = len(self._ended), self._now - (self._began or self._now)
        left = f", {passed / ended * (self._count - ended):.0f} s left" if ended else ""
        return f"{ended} of {self._count} jobs{left}"

    def drawn(self) -> "RenderableType":
        """Everything as rich draws it."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for cells in self.cells():
            table.add_row(*map(Text, cells))
        return Group(table, Text(self.total()))


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
