"""F16: two bytes a value, IEEE binary16, little endian; rounded to even, NaN becomes 0x7E00 plus sign.

Source: ggml_compute_fp32_to_fp16 in llama.cpp's ggml-impl.h.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_bits
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    return blocks.t().contiguous().view(torch.float16).to(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[2, lanes]` of float32 `[1, lanes]`."""
    return _round(x[0])[:, None].view(torch.uint8).t()


@stage
def _round(v: Tensor) -> Tensor:
    return half_bits(v).to(torch.int16)


ROWS = (QuantType("F16", 1, 1, 2, encode, decode),)
