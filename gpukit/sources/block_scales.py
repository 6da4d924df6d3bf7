"""Factors that a file has beside weights in blocks: `X.scale` for NVFP4 in `X.weight`.

One number, or one for each matrix of a stack; `X.input_scale` is for whoever rounds what a weight
is multiplied with, which gpukit does not do. Source: build_lora_mm in llama.cpp's llama-graph.cpp,
_write_scale_tensor in its converter.
"""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpukit.errors import GGUFError
from gpukit.formats.gguf_fields import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

SCALED = "NVFP4"
WEIGHT, SCALE, INPUT_SCALE = ".weight", ".scale", ".input_scale"

# Why numpy's engine does not take them, in words.
SCALES_CANNOT = f"{SCALED} with scales beside it cannot be decoded"

# (number of a tensor, its first row, where the bytes go)
Read = Callable[[int, int, memoryview], None]


class BlockScales:
    """What `tensors`, of the types that are stored, have beside their weights in NVFP4; `read`
    reads rows of a tensor. `GGUFError` for a scale of another type or shape."""

    def __init__(self, path: Path, tensors: Sequence[TensorSpec], read: Read) -> None:
        self._tensors, self._read = tensors, read
        self._scales: dict[int, int] = {}
        self._beside: dict[int, tuple[int, ...]] = {}
        self._rows: dict[int, int] = {}
        self._known: dict[int, NDArray[np.float32]] = {}
        places = {tensor.name: index for index, tensor in enumerate(tensors)}
        for index, tensor in enumerate(tensors):
            if tensor.type != SCALED or not tensor.name.endswith(WEIGHT):
                continue
            stem = tensor.name.removesuffix(WEIGHT)
            names = [stem + end for end in (SCALE, INPUT_SCALE) if stem + end in places]
            self._beside[index] = tuple(places[name] for name in names)
            if stem + SCALE in places:
                place = places[stem + SCALE]
                self._rows[index] = _rows_each(path, tensor, tensors[place])
                self._scales[index] = place

    def __bool__(self) -> bool:
        return bool(self._scales)

    def beside(self, index: int) -> tuple[int, ...]:
        """The tensors that belong to the blocks of tensor `index`."""
        return self._beside.get(index, ())

    def applied(self, index: int, row: int, values: "Tensor") -> "Tensor":
        """float32 `[rows, ne0]`, which are those of tensor `index` from `row` on, times its scale;
        as they are where there is none."""
        import torch

        if index not in self._scales:
            return values
        scales = torch.from_numpy(self._numbers(self._scales[index])).to(values.device)
        rows = torch.arange(row, row + len(values), device=values.device)
        each = scales[rows.div(self._rows[index], rounding_mode="floor")]
        return values.to(torch.float32) * each[:, None]

    def _numbers(self, index: int) -> NDArray[np.float32]:
        """The values of tensor `index`, read once: each slab of rows asks for them."""
        if index not in self._known:
            found = np.empty(self._tensors[index].n_elements, np.float32)
            self._read(index, 0, found.view(np.uint8).data)
            self._known[index] = found
        return self._known[index]


def _rows_each(path: Path, weight: TensorSpec, scale: TensorSpec) -> int:
    """How many rows of `weight` each number of `scale` holds for."""
    matrices = prod(weight.ne[2:])
    if scale.type != "F32" or scale.n_elements not in (1, matrices):
        wanted = "one" if matrices == 1 else f"one or {matrices}"
        raise GGUFError(
            f"{path}: {scale.name} is {scale.n_elements} values of {scale.type}; {wanted} of F32 "
            f"belongs to {weight.name}"
        )
    return weight.rows // scale.n_elements
