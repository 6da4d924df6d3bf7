"""Loops that are being written: what is computed in which of them, and what is known there."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpukit_kernels.cpu.indices import Index, Variable


@dataclass(frozen=True)
class Value:
    """A C expression: a vector of floats "f", whole numbers "i" or truths "m", as known in the
    `depth`-th loop. Of bits of a word, `text` is the word: ((word >> shift) & mask) << up."""

    text: str
    kind: str
    depth: int
    shift: int = 0
    mask: int = 0
    up: int = 0


@dataclass
class _Scope:
    variable: Variable | None
    trips: int
    lines: list[str] = field(default_factory=list)
    known: dict[Any, Value] = field(default_factory=dict)


class Scopes:
    """The loops around what is written now, the outermost first. A value stands in the outermost
    that knows its indices."""

    def __init__(self, lane: Variable) -> None:
        self.lane = lane
        self._scopes = [_Scope(None, 1)]
        self.cost = 0
        self._names = itertools.count()

    def name(self, letter: str) -> str:
        """A name that nothing has yet."""
        return f"{letter}{next(self._names)}"

    @property
    def inner(self) -> _Scope:
        """The innermost loop."""
        return self._scopes[-1]

    @property
    def innermost(self) -> int:
        """Its depth."""
        return len(self._scopes) - 1

    def begin(self) -> None:
        """Only what stands outside of loops; nothing of it costs anything yet."""
        self._scopes = [_Scope(None, 1)]
        self.cost = 0

    def open(self, variable: Variable) -> None:
        trips = -(-variable.size // 16) if variable is self.lane else variable.size
        self._scopes.append(_Scope(variable, self.inner.trips * trips))

    def close(self, unrolled: int = 1) -> None:
        """Write the innermost loop into the one around it, `unrolled` so many times by the C
        compiler."""
        scope = self._scopes.pop()
        v = scope.variable
        assert v is not None
        step = "WIDTH" if v is self.lane else "1"
        pragma = [f"#pragma GCC unroll {unrolled}"] if unrolled > 1 else []
        head = f"for (int {v.name} = 0; {v.name} < {v.size}; {v.name} += {step}) {{"
        self.inner.lines += [*pragma, head, *scope.lines, "}"]

    def find(self, key: Any) -> Value | None:
        """What is known under `key`."""
        for scope in self._scopes:
            if key in scope.known:
                return scope.known[key]
        return None

    def know(self, key: Any, value: Value) -> Value:
        """`value`, known under `key` from here on in its loop."""
        self._scopes[value.depth].known[key] = value
        return value

    def depth(self, index: Index) -> int:
        """Of the outermost loop that knows `index`."""
        used = {variable for variable, _ in index.terms}
        return max((i for i, s in enumerate(self._scopes) if s.variable in used), default=0)

    def named(self, text: str, kind: str, depth: int) -> Value:
        """The value of a C expression, computed in the loop of `depth`."""
        name = self.name("v")
        self.cost += self._scopes[depth].trips
        self._scopes[depth].lines.append(f"v{kind} {name} = {text};")
        return Value(name, kind, depth)

    def line(self, text: str, kind: str, values: Sequence[Value]) -> Value:
        """The value of a C expression of `values`."""
        return self.named(text, kind, max((value.depth for value in values), default=0))

    def plain(self, value: Value) -> Value:
        """`value` with its bits taken out of the word."""
        if not value.mask:
            return value
        text, mask = value.text, value.mask << value.up
        shift = value.shift - value.up
        if shift > 0:
            text = f"({text} >> {shift})"
        elif shift < 0:
            text = f"({text} << {-shift})"
        if mask == 2**32 - 1 and not shift:
            return Value(text, "i", value.depth)
        return self.named(f"{text} & {signed(mask)}", "i", value.depth)


def signed(number: int) -> int:
    """The int32 of the same low bits."""
    return (number + 2**31) % 2**32 - 2**31
