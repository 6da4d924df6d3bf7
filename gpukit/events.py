"""What long work tells its caller while it runs.

A recipe takes `report: Report` and calls it; it never prints. The command line draws the events,
a script may log them, `ignore` drops them.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """A stage has begun, such as `converting model` or `writing manifest`."""

    text: str


@dataclass(frozen=True)
class Step:
    """`done` of `total` bytes of the stage `text` are behind us."""

    text: str
    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """Something harmless that the user should know, as one line."""

    text: str


Event = Status | Step | Warned
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Drop the event."""
    del event
