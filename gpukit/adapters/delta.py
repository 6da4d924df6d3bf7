"""What an adapter does to one tensor of its base: the records, and the sum that they stand for.

    merged(weight, records)              the weight with every record applied, in their order
    merged_rows(rows, first, records)    the same for some of its rows

The sums are those of `gpukit_kernels.merge`, so that every device gives the same bytes. This is the
reference; `merging` and tests compare with it. In float64 it is what PEFT computes, up to float64's
own rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpukit.adapters.values import Values
from gpukit.errors import AdapterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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


def merged(
    weight: "Tensor", records: Sequence[Delta], dtype: "torch.dtype | None" = None
) -> "Tensor":
    """`weight` with `records` applied in their order, computed in `dtype`, float32 without one, not
    rounded after.

    `AdapterError` for numbers of an adapter that are NaN or infinite.
    """
    import torch

    shape = weight.shape
    rows = weight.to(dtype or torch.float32).reshape(-1, _width(weight.shape))
    for record in records:
        if isinstance(record, Replaced) and record.values.shape != shape:
            shape = torch.Size(record.values.shape)
            rows = rows.new_zeros(shape.numel() // _width(shape), _width(shape))
    return merged_rows(rows, 0, records).view(shape)


def merged_rows(rows: "Tensor", first: int, records: Sequence[Delta]) -> "Tensor":
    """The same for `rows` `[count, width]`, float32 or float64, those from `first` on of a weight
    that `records` concern. Stacked matrices are counted through, and a tensor of one dimension has
    rows of one value. The result is on the same device.

    Lengths of columns (DoRA of what is stored transposed) need all rows at once: ValueError.
    """
    base, found = rows, rows.clone()
    for record in records:
        match record:
            case Replaced(values):
                base = _part(values, first, len(rows), rows)
                found = base.clone()
            case ReplacedRows(indices, values):
                for number, index in enumerate(indices):
                    if first <= index < first + len(rows):
                        found[index - first] = _part(values, number, 1, rows)[0]
            case Added(values, scale, begin):
                within, at, count = _common(begin, values.shape[0], first, len(rows))
                found[within] += _part(values, at, count, rows) * _number(scale, rows)
            case LowRank():
                _add(found, base, first, record)
    return found


def product(record: LowRank, first: int, count: int, like: "Tensor") -> "Tensor":
    """`count` rows of scale * B·A from `first` on `[count, width]`, summed as the module says, in
    the dtype and on the device of `like`."""
    from gpukit_kernels.merge import low_rank

    b = record.b.read_rows(first, count, like.dtype).to(like.device)
    a = record.a.read(like.dtype).to(like.device)
    return low_rank(b, a, record.scale)


def _add(found: "Tensor", base: "Tensor", first: int, record: LowRank) -> None:
    """Add to those of the rows `found` that `record` concerns; unmerged they were `base`."""
    from gpukit_kernels.merge import lengths

    within, at, count = _common(record.first, record.rows, first, len(found))
    if not count:
        return
    delta = product(record, at, count, found)
    found[within] += delta
    if record.magnitude is None:
        return
    if record.by_column and count < record.rows:
        raise ValueError(f"{count} rows of {record.rows} do not tell the lengths of columns")
    changed = base[within] + delta
    found_lengths = lengths(changed.t().contiguous() if record.by_column else changed)
    if not (found_lengths > 0).all():
        magnitude = record.magnitude
        raise AdapterError(f"{magnitude.path}: {magnitude.name}: nothing of length 0 has a length")
    wanted = record.magnitude if record.by_column else record.magnitude.rows(at, count)
    factors = wanted.read(found.dtype).to(found.device).view(-1) / found_lengths
    found[within] *= factors if record.by_column else factors.unsqueeze(1)


def _common(begin: int, size: int, first: int, count: int) -> tuple[slice, int, int]:
    """What `size` rows from `begin` on and `count` rows from `first` on have in common: the rows of
    the second, the first row of the first, and how many they are."""
    start, end = max(begin, first), min(begin + size, first + count)
    common = max(0, end - start)
    return slice(start - first, start - first + common), start - begin, common


def _part(values: Values, first: int, count: int, like: "Tensor") -> "Tensor":
    """Rows of `values` as they count in a weight, as `like` is."""
    if len(values.shape) > 2:
        whole = values.read(like.dtype).view(-1, values.shape[-1])
        return whole[first : first + count].to(like.device)
    return values.read_rows(first, count, like.dtype).view(count, -1).to(like.device)


def _number(scale: float, like: "Tensor") -> "Tensor":
    """`scale`, rounded into the dtype of `like`."""
    import torch

    return torch.tensor(scale, dtype=like.dtype, device=like.device)


def _width(shape: Sequence[int]) -> int:
    return shape[-1] if len(shape) > 1 else 1
