"""What happens to the rows of a checkpoint's tensors before their layout changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.floats import FLOATS
from gpukit.models.fp8 import FP8, Scale, read_scale, scaled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The types that steps can see the numbers of.
STORED = frozenset((*FLOATS, *FP8))


def torch_type(dtype: str) -> "torch.dtype":
    """What torch has for one of `STORED`."""
    import torch

    from gpukit.formats.dtypes import TORCH_TYPES

    found: torch.dtype = TORCH_TYPES.get(dtype) or getattr(torch, FP8[dtype])
    return found


class Step(Protocol):
    """Rows of a tensor of the checkpoint -> the rows that take their place, of the same shape.

    `rows` `[count, width]` are those of tensor `name` from `row` on, as they are stored (8-bit
    floats in float32) or as the step before left them; a tensor of more dimensions is a stack of
    matrices, one of one dimension has rows of one value. What comes out is `rows` where there is
    nothing to do, else float32 on the same device. Several threads call at a time.
    """

    def __call__(self, name: str, row: int, rows: "Tensor", /) -> "Tensor": ...


@dataclass(frozen=True)
class Scaling:
    """The first step: 8-bit floats in float32, times their scales where they have some."""

    checkpoint: Checkpoint
    scales: Mapping[str, Scale]

    def __call__(self, name: str, row: int, rows: "Tensor", /) -> "Tensor":
        if rows.element_size() > 1:
            return rows
        scale = self.scales.get(name)
        if scale is None:
            return rows.float()
        return scaled(rows, row, scale, read_scale(self.checkpoint, scale))
