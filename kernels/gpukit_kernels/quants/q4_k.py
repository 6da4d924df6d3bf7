"""Q4_K: 256 values in 144 bytes, 4.5 bits a weight; eight groups of 32 with a 6-bit scale and min.

    bytes 0-1     d, fp16
    bytes 2-3     dmin, fp16
    bytes 4-15    scale and min of the groups, 6 bits each (bits.pack_scales6)
    bytes 16-143  byte 32 g + j: level j of group 2 g low, that of group 2 g + 1 high

x = (d * scale) * level - (dmin * min).
Source: block_q4_K, quantize_row_q4_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import unpack_scales6
from gpukit_kernels.search import (
    AffineSearch,
    SixBits,
    affine_levels,
    affine_scales,
    affine_search,
    affine_values,
)
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[144, lanes]`."""
    packed = blocks[16:].view(4, 1, 32, -1)
    levels = torch.cat([packed & 15, packed >> 4], dim=1).view(8, 32, -1)
    return affine_values(blocks, *unpack_scales6(blocks[4:16]), levels)


def encode(x: Tensor) -> Tensor:
    """uint8 `[144, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    best = affine_search(groups.transpose(0, 1), 15, -1.0, 0.1, 20)
    scales = affine_scales(best)
    return torch.cat([scales.head, _levels(groups, best, scales)])


@stage
def _levels(groups: Tensor, best: AffineSearch, scales: SixBits) -> Tensor:
    levels = affine_levels(groups, best, scales, 15)
    return (levels[::2] | (levels[1::2] << 4)).to(torch.uint8).view(128, -1)


ROWS = (QuantType("Q4_K", 12, 256, 144, encode, decode),)
