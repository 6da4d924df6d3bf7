"""Draws a batch on stderr: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpukit.batches.result import Told, Watch, unwatched
from gpukit.batches.states import State
from gpukit.events import Step, Warned
from gpukit_cli.batch_board import ended
from gpukit_cli.progress import PLAIN_SECONDS


@contextmanager
def watcher(quiet: bool = False) -> Iterator[Watch]:
    """A `Watch` that draws on stderr until the block ends; a quiet one draws nothing."""
    if quiet:
        yield unwatched
    elif sys.stderr.isatty():
        # What draws a table takes time to import.
        from gpukit_cli.batch_board import table

        with table() as watch:
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
            case State.EVALUATING:
                _line(f"{at} {row.output}: evaluating")
            case State.PUSHING:
                _line(f"{at} {row.output}: pushing")
            case State.DONE:
                _line(f"{at} {row.output}: {ended(row)}")
            case _:
                _line(f"{at} {row.output}: {row.state}: {row.why}")

    def _meanwhile(self, told: Told) -> None:
        at, event = f"[{told.number}/{told.count}]", told.event
        if isinstance(event, Warned):
            _line(f"{at} warning: {event.text}")
        elif isinstance(event, Step) and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            _line(f"{at} {event.text}: {100 * event.done // max(event.total, 1)} %")


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
