"""Weights as a file holds them: rows in blocks, taken by GGUF name and checked on the way."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import GGUFError


@dataclass(frozen=True)
class Weight:
    """A matrix in blocks: uint8 `[rows, row_bytes]` of `type`, rows of `width` values.

    A tensor of one dimension is one row.
    """

    blocks: Tensor
    type: str
    width: int

    def rows(self, ids: Tensor) -> Tensor:
        """float32 `[len(ids), width]`: some rows, decoded."""
        return kernels.dequantize(self.blocks[ids], self.type)

    def part(self, first: int, count: int) -> "Weight":
        """Some neighbouring rows, for tensors that hold several matrices; shares the memory."""
        return Weight(self.blocks[first : first + count], self.type, self.width)


@dataclass(frozen=True)
class Linear:
    """x @ W^T + b with W in blocks."""

    weight: Weight
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """float32 `[..., rows]` of float32 `[..., width]`."""
        out = kernels.matmul(x, self.weight.blocks, self.weight.type)
        return out if self.bias is None else out + self.bias


class Weights:
    """The weights of a file by name; each is taken with the shape that it must have.

    `GGUFError`, with both numbers, for one that is missing or has another shape.
    """

    def __init__(self, found: Mapping[str, Weight]) -> None:
        self._found = found
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def matrix(self, name: str, rows: int, width: int) -> Weight:
        """The weight `name`, `[rows, width]`."""
        weight = self._found.get(name)
        if weight is None:
            raise GGUFError(f"{name} is missing; the file is no whole model")
        found = (weight.blocks.shape[0], weight.width)
        if found != (rows, width):
            raise GGUFError(
                f"{name} has {found[0]} rows of {found[1]}, the metadata say {rows} of {width}"
            )
        self._taken.add(name)
        return weight

    def vector(self, name: str, width: int) -> Tensor:
        """The weight `name` decoded: float32 `[width]`."""
        return self.matrix(name, 1, width).rows(torch.tensor([0]))[0]

    def linear(self, name: str, rows: int, width: int) -> Linear:
        """`name`.weight with `name`.bias where there is one."""
        bias = self.vector(f"{name}.bias", rows) if f"{name}.bias" in self else None
        return Linear(self.matrix(f"{name}.weight", rows, width), bias)

    def check_all_taken(self) -> None:
        """`GGUFError` for weights that nothing has taken: without them another model would run."""
        left = sorted(self._found.keys() - self._taken)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise GGUFError(f"{left[0]}{more}: gpukit has no use for it in this architecture")
