"""What long work tells its caller while it runs.

A recipe takes `report: Report` and calls it; it never prints. The command line draws the events,
a script may log them, `ignore` drops them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gpukit.errors import one_line


@dataclass(frozen=True)
class _Told:
    """One line, whatever the names in it hold: they come from files."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", one_line(self.text))


@dataclass(frozen=True)
class Status(_Told):
    """A stage has begun, such as `converting model` or `writing manifest`."""


@dataclass(frozen=True)
class Step(_Told):
    """`done` of `total` of the stage `text` are behind us: bytes, or what `unit` names."""

    done: int
    total: int
    unit: str = "bytes"


@dataclass(frozen=True)
class Warned(_Told):
    """Something harmless that the user should know, as one line."""


Event = Status | Step | Warned
Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Drop the event."""
    del event
