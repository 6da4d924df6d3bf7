"""Indices of elements: a number plus loop variables times numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variable:
    """A loop's counter from 0 to `size`: part `place` of dimension `dim` of its `owner`'s loops."""

    owner: str
    dim: int
    place: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.owner}_{self.dim}_{self.place}" if self.owner else "l"


@dataclass(frozen=True)
class Index:
    """`start` plus each variable times its factor."""

    start: int
    terms: tuple[tuple[Variable, int], ...] = ()

    @staticmethod
    def of(start: int, terms: dict[Variable, int]) -> "Index":
        kept = [(variable, factor) for variable, factor in terms.items() if factor]
        return Index(start, tuple(sorted(kept, key=lambda term: term[0].name)))

    def plus(self, other: "Index", times: int = 1) -> "Index":
        terms = dict(self.terms)
        for variable, factor in other.terms:
            terms[variable] = terms.get(variable, 0) + factor * times
        return Index.of(self.start + other.start * times, terms)

    @property
    def most(self) -> int:
        return self.start + sum((v.size - 1) * factor for v, factor in self.terms)

    def text(self) -> str:
        parts = [str(self.start)] if self.start or not self.terms else []
        parts += [v.name if f == 1 else f"{f} * {v.name}" for v, f in self.terms]
        return " + ".join(parts)


def place_of(start: int, strides: Sequence[int], indices: Sequence[Index]) -> Index:
    """The place in memory, in elements, of the element at `indices`."""
    found = Index(start)
    for step, index in zip(strides, indices, strict=True):
        found = found.plus(index, step)
    return found


def joined(parts: Sequence[Variable], fixed: dict[Variable, int]) -> Index:
    """A dimension's index, of the loops that it is split into, some of them at a number."""
    found, step = Index(0), math.prod(part.size for part in parts)
    for part in parts:
        step //= part.size
        if part in fixed:
            found = found.plus(Index(fixed[part] * step))
        else:
            found = found.plus(Index(0, ((part, step),)))
    return found


class Again(Exception):
    """The attempt has shown something that the next one must know."""


@dataclass
class Learned:
    """What attempts have shown: what is stored, where loops begin anew, how they are split."""

    stored: set[int] = field(default_factory=set)
    breaks: set[int] = field(default_factory=set)
    # Of (owner, dim) the sizes that a loop is split into, and which of them are written out.
    sizes: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    unrolled: set[tuple[str, int, int]] = field(default_factory=set)
    # Of constants, by node, what is in them as C.
    numbers: dict[int, str] = field(default_factory=dict)

    def split(self, variable: Variable, inner: int) -> Again:
        """Make of the loop two, the inner one of size `inner`."""
        key = (variable.owner, variable.dim)
        sizes = self.sizes.setdefault(key, [variable.size])
        at = variable.place
        sizes[at : at + 1] = [variable.size // inner, inner]
        self.unrolled = {
            (*key, place + (place > at)) if (owner, dim) == key else (owner, dim, place)
            for owner, dim, place in self.unrolled
        }
        return Again()

    def unroll(self, variable: Variable) -> Again:
        self.sizes.setdefault((variable.owner, variable.dim), [variable.size])
        self.unrolled.add((variable.owner, variable.dim, variable.place))
        return Again()

    def store(self, number: int) -> Again:
        self.stored.add(number)
        return Again()
