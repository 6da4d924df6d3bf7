"""BF16: two bytes a value, the upper half of binary32, rounded to even; NaN keeps its upper bits, quiet.

Source: ggml_compute_fp32_to_bf16 in llama.cpp's ggml-impl.h.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import word_bytes
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    word = (blocks[0].to(torch.int32) << 16) | (blocks[1].to(torch.int32) << 24)
    return word.view(torch.float32)[None]


@stage
def encode(x: Tensor) -> Tensor:
    """uint8 `[2, lanes]` of float32 `[1, lanes]`."""
    v = x[0]
    bits = v.view(torch.int32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return word_bytes(torch.where(v != v, quiet, rounded), 2)  # noqa: PLR0124


ROWS = (QuantType("BF16", 30, 1, 2, encode, decode),)
