"""F32: four bytes a value, IEEE binary32, little endian."""

import torch
from torch import Tensor

from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[4, lanes]`."""
    return blocks.t().contiguous().view(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[4, lanes]` of float32 `[1, lanes]`: the bits, NaN payloads included."""
    return x.t().contiguous().view(torch.uint8).t()


ROWS = (QuantType("F32", 0, 1, 4, encode, decode),)
