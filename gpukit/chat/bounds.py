"""What one rendering may use: time, and characters made on the way and in the end.

Everything that a template does goes by here, so that no part of it has to be stopped from outside:
what would be too large is refused before it is made, and between two steps, each of which is short,
the clock is looked at. So it holds in any thread, and nothing has to be killed.
"""

import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

# Processor time of the thread: a busy machine refuses no template.
SECONDS = 5.0
# Characters beyond twice what the messages have: more than any context holds.
MOST = 4 << 20
# What a member of a list counts, in characters: it takes as long to look at.
MEMBER = 16
# How often as much may be made on the way.
ROUNDS = 16
# Steps between two looks at the clock; a step costs about a tenth of a microsecond.
STEPS = 2000
CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


class Exceeded(Exception):
    """A template that wants more than it may have."""


class Budget:
    """What is left of one rendering whose texts may have `most` characters each."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._made = 0
        self._steps = 0
        self._ends = time.thread_time() + SECONDS

    def charge(self, steps: int = 1) -> None:
        """Count work; `Exceeded` when the time is over."""
        self._steps += steps
        if self._steps >= STEPS:
            self._steps = 0
            if time.thread_time() > self._ends:
                raise Exceeded(f"it computes for more than {SECONDS:g} seconds")

    def fits(self, size: int) -> None:
        """`Exceeded` for something of `size` characters that is about to be made."""
        if size > self.most:
            raise Exceeded(f"it makes a text, or a list as large, of over {self.most} characters")

    def made(self, size: int) -> None:
        """Count `size` characters that are made."""
        self.fits(size)
        self.charge(1 + size // 64)
        self._made += size
        if self._made > ROUNDS * self.most:
            raise Exceeded(f"it makes over {ROUNDS * self.most} characters on the way")


CURRENT: ContextVar[Budget] = ContextVar("budget of the rendering")


def weigh(value: Any) -> int:
    """The size of `value` in characters, what it contains included as often as it is there, so that
    writing or comparing it takes no longer than that; `Exceeded` where it is too large.

    A namespace can be changed after it was weighed, so it can be in nothing.
    """
    budget = CURRENT.get()
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, CONTAINERS):
            budget.fits(total + MEMBER * len(item))
            left.extend(item)
            if isinstance(item, Mapping):
                left.extend(item.values())
        elif isinstance(item, Namespace):
            raise SecurityError("a namespace as a text or inside something")
        total += MEMBER
        budget.charge()
    budget.fits(total)
    return total


def admitted(value: Any) -> Any:
    """`value`, which was just made; `Exceeded` where it is too large. An iterator is counted as it
    is read."""
    if isinstance(value, str):
        CURRENT.get().made(len(value))
    elif isinstance(value, CONTAINERS):
        weigh(value)
        CURRENT.get().made(MEMBER * len(value))
    elif isinstance(value, Iterator):
        return counted(value)
    return value


def counted(values: Iterable[Any]) -> Iterator[Any]:
    """The same values, each a step."""
    charge: Callable[[], None] = CURRENT.get().charge
    for value in values:
        charge()
        yield value


def size_of(messages: Iterable[Mapping[str, Any]]) -> int:
    """The size in characters of what comes from the caller, which has no limit."""
    total, left = 0, list[Any](messages)
    while left:
        item = left.pop()
        total += MEMBER + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, Mapping):
            left.extend((*item, *item.values()))
        elif isinstance(item, list | tuple):
            left.extend(item)
    return total
