"""The values of a piece as arrays of NumPy, deltas added by the kept program: without torch.

They are those of `Source.values`, whose parts `Source.made_of` tells. bfloat16 is uint16 here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpukit.adapters.delta import LowRank
from gpukit.adapters.merging import factors_of, segments
from gpukit.formats.floats import FLOATS, widened
from gpukit.models.carried_blocks import order_of
from gpukit.models.rules import ColumnOrder, Transform
from gpukit.sources.base import Part
from gpukit_kernels import Factors, type_facts
from gpukit_kernels.cpu import plain
from gpukit_kernels.cpu.merger import Floats, Merger, merged_rows, narrowed

Array = NDArray[Any]
# Rows from where to where, and what is added to them.
Added = tuple[int, int, Sequence[Factors[Floats]]]


def _order(transform: Transform, group: int) -> NDArray[np.intp] | None:
    """For each of `group` rows behind `transform` the one that it was; None where it does more than
    move rows or columns."""
    return np.arange(group) if isinstance(transform, ColumnOrder) else order_of(transform, group)


def why_not(part: Part, group: int) -> str | None:
    """Why arrays do not do for `part`, in words; `group` is how many rows move together."""
    if part.values is not None:
        return None
    if part.dtype not in FLOATS or part.dtype not in type_facts():
        return f"cannot be decoded from {part.dtype}"
    for record in part.records:
        if not isinstance(record, LowRank) or record.by_column:
            return "is changed by more than a low-rank delta"
    moves = part.transform is None or part.width == 1 or _order(part.transform, group) is not None
    return None if moves else "changes its layout in a way that is not known"


def narrows(part: Part, kind: str, line: bool) -> bool:
    """Whether making float type `kind` of `part`, which is a `line` where its tensor has one
    dimension, takes the program: all that rounds does, and adding deltas."""
    given = "F32" if line and part.transform is not None and part.dtype == "BF16" else part.dtype
    return bool(part.records) or kind not in ("F32", given)


@dataclass(frozen=True)
class _Stored:
    """A part and its bytes, the first row of which is row `at` of the piece; a `line` is one row
    there."""

    part: Part
    data: Array
    at: int
    line: bool

    @cached_property
    def added(self) -> list[Added]:
        """What is added to which rows of the part."""
        part, last = self.part, self.part.first + self.part.rows
        records = [record for record in part.records if isinstance(record, LowRank)]
        return [
            (begin - part.first, end - part.first, [factors_of(r, begin, end) for r in found])
            for begin, end, found in segments(part.first, last, records)
        ]

    def laid_out(self, values: Array) -> Array:
        """`values` in the layout of the model."""
        values = values.reshape(1, -1) if self.line else values
        if self.part.transform is None:
            return values
        # Lines are few, and their transforms may compute, which takes numbers, not bits.
        return np.asarray(self.part.transform(widened(values) if self.line else values))


class Rows:
    """`rows` rows of a tensor, of `parts` whose bytes lie one behind the other in `stored`; the
    tensor is a `line` where it has one dimension, and `group` of its rows move together."""

    def __init__(
        self, parts: Sequence[Part], stored: NDArray[np.uint8], group: int, line: bool,
        merger: Merger | None, threads: int,
    ) -> None:  # fmt: skip
        self._parts: list[_Stored] = []
        self._group, self._merger, self._threads = group, merger, threads
        at = begin = 0
        for part in parts:
            if part.values is not None:
                data: Array = part.values
            else:
                size = part.rows * part.width * FLOATS[part.dtype].itemsize
                data = stored[begin : begin + size]
                begin += size
                # Where no value may begin they have to move.
                data = data if data.ctypes.data % FLOATS[part.dtype].itemsize == 0 else data.copy()
                data = data.view(FLOATS[part.dtype]).reshape(part.rows, part.width)
            self._parts.append(_Stored(part, data, at, line and part.values is None))
            at += part.rows

    def made(
        self, dtypes: Sequence[np.dtype[Any] | None]
    ) -> tuple[Mapping[np.dtype[Any] | None, Array], float]:
        """All rows in each of `dtypes`, of which None is a type that holds them, and the largest
        magnitude before rounding, NaN or infinity where there is one. Deltas are added once."""
        wanted = set(dtypes)
        if len(wanted) == 1:
            (only,) = wanted
            values, largest = self._made(only)
            return {only: values}, largest
        values, largest = self._made(None)
        # A dtype beside None has another meaning to NumPy.
        floats = [dtype for dtype in wanted if dtype is not None]
        return {None: values, **{d: self._converted(values, d) for d in floats}}, largest

    def _made(self, dtype: np.dtype[Any] | None) -> tuple[Array, float]:
        found, tops = [], []
        for stored in self._parts:
            values, top = self._merged(stored, dtype)
            found.append(stored.laid_out(values))
            tops.append(plain.largest(found[-1]) if top is None else top)
        if dtype is None:
            dtype = found[0].dtype if len({f.dtype for f in found}) == 1 else FLOATS["F32"]
        found = [self._converted(values, dtype) for values in found]
        along = 1 if any(stored.line for stored in self._parts) else 0
        return (np.concatenate(found, along) if len(found) > 1 else found[0]), float(np.max(tops))

    def _merged(self, stored: _Stored, dtype: np.dtype[Any] | None) -> tuple[Array, float | None]:
        """The rows of a part with its deltas, and their largest magnitude if it has any."""
        if not stored.part.records:
            return stored.data, None
        assert self._merger is not None
        found, tops = [], []
        for begin, end, factors in stored.added:
            rows, top = merged_rows(
                stored.data[begin:end], factors, self._merger, dtype or FLOATS["F32"], self._threads
            )
            found.append(rows)
            tops.append(top)
        return (np.concatenate(found) if len(found) > 1 else found[0]), float(np.max(tops))

    def _converted(self, values: Array, dtype: np.dtype[Any]) -> Array:
        if values.dtype == dtype:
            return values
        if dtype == FLOATS["F32"]:
            return plain.as_float32(values)
        assert self._merger is not None
        return narrowed(np.ascontiguousarray(values), dtype, self._merger, self._threads)

    def some(self, picks: NDArray[np.intp], *, merged: bool = True) -> Floats:
        """The rows `picks`, ascending, in float32, not rounded; if not `merged` as in the base."""
        found = []
        for stored in self._parts:
            inside = picks[(picks >= stored.at) & (picks < stored.at + stored.part.rows)]
            if stored.line:
                found.append(plain.as_float32(stored.laid_out(stored.data)))
            elif len(inside):
                found.append(self._picked(stored, inside - stored.at, merged))
        return np.concatenate(found, 1 if self._parts[0].line else 0)

    def _picked(self, stored: _Stored, picks: NDArray[np.intp], merged: bool) -> Floats:
        if stored.part.transform is not None:
            order = _order(stored.part.transform, self._group)
            assert order is not None
            picks = picks // self._group * self._group + order[picks % self._group]
        found = self._with_deltas(stored, picks, merged)
        transform = stored.part.transform
        return np.asarray(transform(found)) if isinstance(transform, ColumnOrder) else found

    def _with_deltas(self, stored: _Stored, picks: NDArray[np.intp], merged: bool) -> Floats:
        """The rows `picks` of a part before their layout changes."""
        found = plain.as_float32(stored.data[picks])
        if not merged or not stored.part.records:
            return found
        assert self._merger is not None
        found = found.copy()
        for begin, end, factors in stored.added:
            inside = (picks >= begin) & (picks < end)
            numbers = picks[inside] - begin
            some = [
                f._replace(
                    b=f.b[numbers],
                    magnitude=None if f.magnitude is None else f.magnitude[numbers],
                )
                for f in factors
            ]
            found[inside] = self._merger.merge(found[inside], some)
        return found
