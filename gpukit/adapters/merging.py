"""Records applied to rows by the kernels: the sums of `delta.merged_rows`, on any device."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.adapters.delta import Delta, LowRank, Replaced, merged_rows
from gpukit_kernels import Factors


def merge_rows(rows: Tensor, first: int, records: Sequence[Delta]) -> Tensor:
    """float32 `[count, width]`: what `merged_rows` gives for `rows` `[count, width]` of any float
    dtype, those from `first` on of a weight that `records` concern; errors as there. Of float64 it
    is float64."""
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
    return _parts(rows, first, low_rank)


def _parts(rows: Tensor, first: int, records: Sequence[LowRank]) -> Tensor:
    """Between two rows where a record begins or ends the same ones concern all rows."""
    last = first + len(rows)
    ends = {first, last}
    for record in records:
        ends |= {min(max(end, first), last) for end in (record.first, record.first + record.rows)}
    cuts = sorted(ends)
    found = [
        _merged(rows[begin - first : end - first], begin, end, records)
        for begin, end in pairwise(cuts)
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def _merged(rows: Tensor, begin: int, end: int, records: Sequence[LowRank]) -> Tensor:
    concerned = [r for r in records if r.first <= begin and end <= r.first + r.rows]
    factors = [_factors(record, begin - record.first, rows) for record in concerned]
    return kernels.merge_lora(rows, factors)


def _factors(record: LowRank, first: int, like: Tensor) -> Factors:
    """What `record` does to as many rows as `like` has, the record's from `first` on, where those
    are."""
    count, lengths = len(like), None
    if record.magnitude is not None:
        lengths = record.magnitude.read_rows(first, count).view(count).to(like.device)
    b = record.b.read_rows(first, count).to(like.device)
    return Factors(b, record.a.read().to(like.device), record.scale, lengths)
