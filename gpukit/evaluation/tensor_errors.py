"""What quantising lost of each tensor: the squared error of its values as a share of their squares.

Nothing is kept in memory but a slab of rows of both at a time.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.formats.imatrix import Floats
from gpukit.planning.plan import PlannedOutput, QuantizePlan
from gpukit.sources.base import Source, SourceTensor

# Weights of a tensor in memory at a time: 16 MiB of float32 for each of both sides.
SLAB = 1 << 22
# What loses nothing worth a map: weights as checkpoints have them.
FLOATS = ("F64", "F32", "F16", "BF16")
BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor as `type`: sum (w - q)² / sum w² over its weights, and the same with
    the importance of each column in front of both squares, where there is one.

    NaN where a weight is not finite, 0 where all weights are 0 and stay so.
    """

    name: str
    type: str
    error: float
    weighted: float | None = None

    @property
    def layer(self) -> int | None:
        """The number of its layer; None for what belongs to none."""
        found = BLOCK.fullmatch(self.name)
        return int(found[1]) if found else None

    @property
    def tensor_class(self) -> str:
        """What it is in its layer, such as attn_q."""
        found = BLOCK.fullmatch(self.name)
        return (found[2] if found else self.name).removesuffix(".weight")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layer": self.layer,
            "class": self.tensor_class,
            "type": self.type,
            "error": self.error,
            "weighted_error": self.weighted,
        }


def errors_in_memory(
    source: Source, plan: QuantizePlan, blocks: Sequence[Tensor], place: torch.device
) -> tuple[TensorError, ...]:
    """The errors of what `plan` made of `source`, whose bytes are `blocks`, computed on `place`."""
    found = []
    for output, part in zip(plan.outputs, blocks, strict=True):
        if output.spec.type in FLOATS:
            continue
        tensor, sums = source.tensors[output.index], _Sums()
        for row, rows in _slabs(tensor):
            ours = kernels.dequantize(part[row : row + rows].to(place), output.spec.type)
            theirs = source.float_rows(output.index, row, rows, place)
            sums.add(theirs, ours, _importance(output, tensor, row, rows, place))
        found.append(sums.error(output.spec.name, output.spec.type))
    return tuple(found)


def errors_beside(base: Source, model: Source, place: torch.device) -> tuple[TensorError, ...]:
    """The errors of the quantised tensors of `model` that `base` has in the same shape."""
    theirs = {tensor.name: index for index, tensor in enumerate(base.tensors)}
    found = []
    for index, tensor in enumerate(model.tensors):
        kind, other = model.stored_type(index), theirs.get(tensor.name)
        if kind in FLOATS or other is None or base.tensors[other].ne != tensor.ne:
            continue
        sums = _Sums()
        group = math.lcm(tensor.row_group, base.tensors[other].row_group)
        for row, rows in _slabs(tensor, group):
            ours = model.float_rows(index, row, rows, place)
            sums.add(base.float_rows(other, row, rows, place), ours, None)
        found.append(sums.error(tensor.name, kind))
    return tuple(found)


@dataclass
class _Sums:
    """Squares of errors and of weights so far, plain and weighted."""

    lost: float = 0.0
    whole: float = 0.0
    weighted_lost: float = 0.0
    weighted_whole: float = 0.0
    is_weighted: bool = False

    def add(self, theirs: Tensor, ours: Tensor, importance: Tensor | None) -> None:
        lost, whole = (theirs - ours).square(), theirs.square()
        self.lost += float(lost.sum(dtype=torch.float64))
        self.whole += float(whole.sum(dtype=torch.float64))
        if importance is not None:
            self.is_weighted = True
            self.weighted_lost += float((lost * importance).sum(dtype=torch.float64))
            self.weighted_whole += float((whole * importance).sum(dtype=torch.float64))

    def error(self, name: str, kind: str) -> TensorError:
        weighted = _share(self.weighted_lost, self.weighted_whole) if self.is_weighted else None
        return TensorError(name, kind, _share(self.lost, self.whole), weighted)


def _share(lost: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if lost == 0 else math.inf
    return lost / whole if math.isfinite(whole) else math.nan


def _slabs(tensor: SourceTensor, group: int | None = None) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each slab."""
    group = group or tensor.row_group
    width = max(tensor.ne[0] if tensor.ne else 1, 1)
    step = max(SLAB // width // group, 1) * group
    for row in range(0, tensor.rows, step):
        yield row, min(step, tensor.rows - row)


def _importance(
    output: PlannedOutput, tensor: SourceTensor, row: int, rows: int, place: torch.device
) -> Tensor | None:
    """float32 `[rows, ne0]`, of each expert its own; None without."""
    importance: Floats | None = output.importance
    if importance is None:
        return None
    columns = torch.from_numpy(importance).view(-1, tensor.ne[0])
    of_one = max(tensor.rows // len(columns), 1)
    return columns[torch.arange(row, row + rows) // of_one].to(place)
