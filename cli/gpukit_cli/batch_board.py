"""The table of a batch on a terminal: the jobs under way, as many of those that have ended as a
screen has room for, and how far the whole is."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from gpukit.batches.result import Row, Told, Watch
from gpukit.batches.states import State
from gpukit.events import Step, Warned
from gpukit_cli.progress import human_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

# Lines of a table at most, however high the screen; a low one leaves one for the cursor.
MOST_LINES = 20
Cells = tuple[str, str, str]


@contextmanager
def table() -> Iterator[Watch]:
    """A `Watch` that draws on stderr, which is a terminal, until the block ends."""
    from rich.console import Console
    from rich.control import Control
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    board, width = Board(), console.width
    with Live(board.drawn(console.size), console=console, refresh_per_second=8) as live:

        def watch(told: Told) -> None:
            nonlocal width
            if isinstance(told.event, Warned):
                console.print(f"warning: {told.event.text}", markup=False, style="yellow")
                return
            board.hear(told, time.monotonic())
            if console.width != width:
                # How the terminal has broken the lines that are there nobody can know.
                width = console.width
                console.control(Control.clear(), Control.home())
            live.update(board.drawn(console.size))

        yield watch


class _Job:
    """What was told of a job last, when its stage began, and how far that is."""

    def __init__(self, told: Told, now: float) -> None:
        self.told = told
        self.began = now
        self.step: Step | None = None

    @property
    def bytes(self) -> tuple[int, int]:
        """Done and all, of a stage that counts bytes."""
        step = self.step
        return (step.done, step.total) if step is not None and step.unit == "bytes" else (0, 0)


class Board:
    """What the table shows; safe from several threads."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._began: float | None = None
        self._now = 0.0
        self._count = 0
        self._lock = Lock()

    def hear(self, told: Told, now: float) -> None:
        """Take up what a batch tells at the time `now`."""
        with self._lock:
            self._now, self._count = now, told.count
            if self._began is None:
                self._began = now
            job = self._jobs.setdefault(told.number, _Job(told, now))
            if told.event is None:
                if told.row.state.is_under_way:
                    job.began, job.step = now, None
                job.told = told
            elif isinstance(told.event, Step):
                if job.step is not None and job.step.text != told.event.text:
                    job.began = now
                job.step = told.event

    def cells(self, lines: int = MOST_LINES) -> list[Cells]:
        """Number, output and state of the jobs that so many lines have room for: those under way
        before those that have ended, and of these the last."""
        with self._lock:
            running = [n for n, job in self._jobs.items() if self._is_under_way(job)]
            ended = [n for n in self._jobs if n not in running]
            hidden = len(running) - lines if len(running) > lines else 0
            room = max(lines - len(running), 0)
            shown = sorted([*running[:lines], *(ended[-room:] if room else ())])
            if hidden:
                shown, hidden = shown[:-1], hidden + 1
            found = [self._cells(self._jobs[number]) for number in shown]
        return [*found, ("", f"and {hidden} more under way", "")] if hidden else found

    def _is_under_way(self, job: _Job) -> bool:
        return job.told.row.state.is_under_way

    def _cells(self, job: _Job) -> Cells:
        told = job.told
        return f"{told.number}/{told.count}", told.row.output, self._state(job)

    def _state(self, job: _Job) -> str:
        row, step = job.told.row, job.step
        if row.state is State.DONE:
            return ended(row)
        if not row.state.is_under_way:
            return f"{row.state}: {row.why}"
        if step is None or not step.total:
            return str(row.state)
        if step.unit != "bytes":
            return f"{row.state}, {step.done} of {step.total} {step.unit}"
        rate = step.done / max(self._now - job.began, 1e-9)
        left = f", {(step.total - step.done) / rate:.0f} s left" if rate > 0 else ""
        return f"{100 * step.done // step.total} %, {human_bytes(int(rate))}/s{left}"

    def total(self) -> str:
        """How far the batch is, its rate, and how long the rest takes if jobs that have not begun
        are as large as the others."""
        with self._lock:
            jobs = list(self._jobs.values())
            running = sum(map(self._is_under_way, jobs))
            failed = sum(job.told.row.state is State.FAILED for job in jobs)
            parts = [f"{len(jobs) - running} of {self._count} jobs"]
            parts += [f"{running} running"] if running else []
            parts += [f"{failed} failed"] if failed else []
            passed = self._now - (self._began or self._now)
            done, known = sum(j.bytes[0] for j in jobs), sum(j.bytes[1] for j in jobs)
            rate = done / passed if passed > 0 else 0.0
            if rate > 0:
                expected = known / len(jobs) * self._count
                parts.append(f"{human_bytes(int(rate))}/s")
                if expected > done:
                    parts.append(f"{(expected - done) / rate:.0f} s left")
        return ", ".join(parts)

    def drawn(self, size: tuple[int, int]) -> "RenderableType":
        """Everything as rich draws it, a line each, on a screen of so many columns and lines."""
        from rich.text import Text

        width, height = size
        # A full line would begin another.
        width = max(width - 1, 1)
        lines = _lines(self.cells(max(min(MOST_LINES, height - 2), 1)), width)
        return Text("\n".join([*lines, self.total()[:width]]), no_wrap=True, overflow="crop")


def ended(row: Row) -> str:
    """What came of a job, or of its evaluation."""
    found = row.evaluation
    if found is None:
        return f"{human_bytes(row.size or 0)} in {row.seconds or 0:.1f} s"
    if not row.numbers:
        return f"not evaluated: {found.get('why')}"
    ppl, kld = found["perplexity"], found.get("kld")
    told = f"PPL {ppl:.4f}" if isinstance(ppl, float) else f"PPL {ppl}"
    told += f", KLD {kld:.5f}" if isinstance(kld, float) else ""
    return f"{told} in {found['seconds']:.1f} s"


def _lines(rows: Sequence[Cells], width: int) -> list[str]:
    """The cells below each other in so many columns. A long state has half of a line at most; of an
    output the beginning is cut off, where outputs are alike."""
    first, output, last = (max((len(row[i]) for row in rows), default=0) for i in range(3))
    room = max(width - first - min(last, width // 2) - 4, 0)
    output = min(output, room)
    return [
        f"{number:>{first}}  {_ending(name, output):<{output}}  {state}"[:width]
        for number, name, state in rows
    ]


def _ending(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"[:most]
