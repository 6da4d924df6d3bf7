"""Which type each tensor gets so that together they fit into a number of bytes and lose least.

Without a look at what it costs, every step from one type of a tensor to a larger one has a price:
the loss that it saves for each of its bytes. Steps are taken from the best price on, along the
lower convex hull of each tensor's (bytes, loss), until one does not fit: that is the least loss of
all choices of this size. What is left is filled with the steps that save most and still fit. Ties
go to the earlier tensor and the smaller type, so that the same input always has the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A tensor as one type: the bytes that it takes, and what is lost."""

    type: str
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Item:
    """A tensor and what it may become, one option at least."""

    name: str
    options: tuple[Option, ...]


class BudgetError(ValueError):
    """A budget that nothing fits: `least` and `most` are the bytes that are possible."""

    def __init__(self, budget: int, least: int, most: int) -> None:
        super().__init__(f"{budget} bytes are not within {least} to {most}")
        self.least = least
        self.most = most


def spend(items: Sequence[Item], budget: int) -> dict[str, str]:
    """The type of each item by its name: together at most `budget` bytes, with the least loss that
    steps along the hulls reach, and what is left filled. `BudgetError` where not even the smallest
    types fit, and where the largest leave some of the budget."""
    least = sum(min(o.nbytes for o in item.options) for item in items)
    most = sum(max(o.nbytes for o in item.options) for item in items)
    if not least <= budget <= most:
        raise BudgetError(budget, least, most)
    hulls = [_hull(item.options) for item in items]
    taken = [hull[0] for hull in hulls]
    left = budget - sum(option.nbytes for option in taken)
    # Prices fall along a hull: sorting never puts a step before the one that it follows.
    for _, number, step in sorted(_steps(hulls)):
        cost = hulls[number][step].nbytes - hulls[number][step - 1].nbytes
        if cost > left:
            break
        taken[number] = hulls[number][step]
        left -= cost
    _fill(items, taken, left)
    return {item.name: option.type for item, option in zip(items, taken, strict=True)}


def _steps(hulls: Sequence[Sequence[Option]]) -> list[tuple[float, int, int]]:
    """Of every step of every hull: what it adds to the loss for each byte, where it is."""
    return [
        ((hull[step].loss - hull[step - 1].loss) / (hull[step].nbytes - hull[step - 1].nbytes),
         number, step)
        for number, hull in enumerate(hulls)
        for step in range(1, len(hull))
    ]  # fmt: skip


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, by bytes; each loses less than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _above(first: Option, middle: Option, last: Option) -> bool:
    """Whether `middle` is not below the line from `first` to `last`."""
    return (middle.loss - first.loss) * (last.nbytes - first.nbytes) >= (last.loss - first.loss) * (
        middle.nbytes - first.nbytes
    )


def _fill(items: Sequence[Item], taken: list[Option], left: int) -> None:
    """Exchange options for those that save most and fit into `left` bytes more, until none do."""
    while True:
        best: tuple[float, int, int] | None = None
        for number, item in enumerate(items):
            now = taken[number]
            for place, option in enumerate(item.options):
                saved = now.loss - option.loss
                if option.nbytes - now.nbytes <= left and saved > 0:
                    found = (-saved, number, place)
                    best = found if best is None else min(best, found)
        if best is None:
            return
        _, number, place = best
        left -= items[number].options[place].nbytes - taken[number].nbytes
        taken[number] = items[number].options[place]
