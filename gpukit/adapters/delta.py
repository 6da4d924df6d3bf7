"""What an adapter does to one tensor of its base: the records, and the sum that they stand for.

    merged(weight, records) -> the weight with every record applied, in their order

The sum is defined, so that every device can give the same bytes: of a low-rank record it is
delta[r, c] = Σ_k B[r, k]·A[k, c] in the order of k from zero on, each product rounded before it is
added (no FMA), then times the scale, then added to the weight. This is the reference; kernels and
tests compare with it. In float64 it is what PEFT computes, up to float64's own rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpukit.adapters.values import Values
from gpukit.errors import AdapterError


@dataclass(frozen=True)
class LowRank:
    """Rows `first` to `first + len(b)` of a tensor + scale * B·A: `b` `[rows, rank]`, `a`
    `[rank, width]`. A tensor of more dimensions is a stack of matrices, whose rows count through.

    With `magnitude` (DoRA) each row of the sum is then brought to that length; with `by_column`
    each column, as PEFT does it with what is stored transposed. The length before is that of the
    base's own weight plus this delta, whatever other adapters have done to it.
    """

    b: Values
    a: Values
    scale: float
    first: int = 0
    magnitude: Values | None = None
    by_column: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def rows(self) -> int:
        return self.b.shape[0]


@dataclass(frozen=True)
class Replaced:
    """The whole tensor gives way to `values`, which have more or fewer rows where the vocabulary
    was resized."""

    values: Values


@dataclass(frozen=True)
class ReplacedRows:
    """Rows `rows`, in that order, give way to those of `values` `[len(rows), width]`."""

    rows: tuple[int, ...]
    values: Values


@dataclass(frozen=True)
class Added:
    """scale * `values` is added to as many values of a tensor of one dimension from `first` on."""

    values: Values
    scale: float
    first: int = 0


Delta = LowRank | Replaced | ReplacedRows | Added


def merged(weight: Tensor, records: Sequence[Delta], dtype: torch.dtype = torch.float32) -> Tensor:
    """`weight` with `records` applied in their order, computed in `dtype`, not rounded after.

    `AdapterError` for numbers of an adapter that are NaN or infinite.
    """
    base = weight.to(dtype)
    found = base.clone()
    for record in records:
        match record:
            case Replaced(values):
                base = values.read(dtype)
                found = base.clone()
            case ReplacedRows(rows, values):
                found[list(rows)] = values.read(dtype)
            case Added(values, scale, first):
                found[first : first + values.shape[0]] += values.read(dtype) * scale
            case LowRank():
                _add(found, base, record)
    return found


def product(record: LowRank, dtype: torch.dtype = torch.float32) -> Tensor:
    """scale * B·A `[rows, width]`, summed as the module says."""
    b, a = record.b.read(dtype), record.a.read(dtype)
    total = torch.zeros(record.rows, a.shape[1], dtype=dtype)
    for k in range(record.rank):
        total += b[:, k, None] * a[k]
    return total * torch.tensor(record.scale, dtype=dtype)


def _add(found: Tensor, base: Tensor, record: LowRank) -> None:
    """Add to the rows of `found` that `record` concerns, of a tensor that was `base`."""
    within = slice(record.first, record.first + record.rows)
    rows = found.view(-1, found.shape[-1])[within]
    delta = product(record, dtype=found.dtype)
    rows += delta
    if record.magnitude is None:
        return
    before = base.view(-1, base.shape[-1])[within] + delta
    along = 0 if record.by_column else 1
    lengths = before.square().sum(along, keepdim=True).sqrt()
    if not (lengths > 0).all():
        name = record.magnitude.name
        raise AdapterError(f"{record.magnitude.path}: {name} is of a row that is zero in the base")
    rows *= record.magnitude.read(found.dtype).view(lengths.shape) / lengths
