"""BF16: two bytes a value, the upper half of binary32, rounded to even; NaN keeps its upper bits, quiet.

Source: ggml_compute_fp32_to_bf16 in llama.cpp's ggml-impl.h.
"""

import torch
from torch import Tensor

from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    return blocks.t().contiguous().view(torch.bfloat16).to(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[2, lanes]` of float32 `[1, lanes]`."""
    return _round(x[0])[:, None].view(torch.uint8).t()


@stage
def _round(v: Tensor) -> Tensor:
    bits = v.view(torch.int32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return torch.where(v != v, quiet, rounded).to(torch.int16)  # noqa: PLR0124  (NaN only)


ROWS = (QuantType("BF16", 30, 1, 2, encode, decode),)
