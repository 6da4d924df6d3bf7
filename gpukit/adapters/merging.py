"""Records applied to rows by the kernels: the sums of `delta.merged_rows`, on any device, and of
arrays without torch."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpukit.adapters.delta import Delta, LowRank, Replaced, merged_rows
from gpukit_kernels import Factors

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]


def merge_rows(rows: "Tensor", first: int, records: Sequence[Delta]) -> "Tensor":
    """float32 `[count, width]`: what `merged_rows` gives for `rows` `[count, width]` of any float
    dtype, those from `first` on of a weight that `records` concern; errors as there. Of float64 it
    is float64."""
    import torch

    if rows.dtype is torch.float64:
        return merged_rows(rows, first, records)
    low_rank = [record for record in records if isinstance(record, LowRank)]
    copied = [record for record in records if isinstance(record, Replaced)]
    # A copy comes first, as `together` leaves it; what else there is has few numbers.
    in_order = list(records) == [*copied[-1:], *low_rank]
    if not low_rank or not in_order or any(record.by_column for record in low_rank):
        return merged_rows(rows.to(torch.float32), first, records)
    if copied:
        rows = merged_rows(rows.to(torch.float32), first, copied)
    found = [
        _merged(rows[begin - first : end - first], begin, concerned)
        for begin, end, concerned in segments(first, first + len(rows), low_rank)
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def segments(
    first: int, last: int, records: Sequence[LowRank]
) -> Iterator[tuple[int, int, list[LowRank]]]:
    """Rows `first` to `last` of a weight, cut where a record begins or ends: from where to where,
    and the records that concern all rows between."""
    ends = {first, last}
    for record in records:
        ends |= {min(max(end, first), last) for end in (record.first, record.first + record.rows)}
    for begin, end in pairwise(sorted(ends)):
        concerned = [r for r in records if r.first <= begin and end <= r.first + r.rows]
        yield begin, end, concerned


def _merged(rows: "Tensor", begin: int, records: Sequence[LowRank]) -> "Tensor":
    import gpukit_kernels as kernels

    return kernels.merge_lora(
        rows, [_factors(record, begin - record.first, rows) for record in records]
    )


def _factors(record: LowRank, first: int, like: "Tensor") -> "Factors[Tensor]":
    """What `record` does to as many rows as `like` has, the record's from `first` on, where those
    are."""
    count, lengths = len(like), None
    if record.magnitude is not None:
        lengths = record.magnitude.read_rows(first, count).view(count).to(like.device)
    b = record.b.read_rows(first, count).to(like.device)
    return Factors(b, record.a.read().to(like.device), record.scale, lengths)


def factors_of(record: LowRank, begin: int, end: int) -> Factors[Floats]:
    """What `record` does to the rows `begin` to `end` of its tensor, as arrays."""
    first, count, lengths = begin - record.first, end - begin, None
    if record.magnitude is not None:
        lengths = record.magnitude.array(first, count).reshape(count)
    # Contiguous once, not for every part of a slab.
    b = np.ascontiguousarray(record.b.array(first, count))
    a = np.ascontiguousarray(record.a.array(0, record.rank))
    return Factors(b, a, record.scale, lengths)
