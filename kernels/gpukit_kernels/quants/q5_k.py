"""Q5_K: 256 values in 176 bytes, 5.5 bits a weight; eight groups of 32 with a 6-bit scale and min.

    bytes 0-1     d, fp16
    bytes 2-3     dmin, fp16
    bytes 4-15    scale and min of the groups, 6 bits each (bits.pack_scales6)
    bytes 16-47   byte j, bit g: bit 4 of level j of group g
    bytes 48-175  byte 32 g + j: low four bits of level j of group 2 g low, of group 2 g + 1 high

x = (d * scale) * level - (dmin * min).
Source: block_q5_K, quantize_row_q5_K_ref in llama.cpp's ggml-quants.c.
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
    """float32 `[256, lanes]` of uint8 `[176, lanes]`."""
    packed = blocks[48:].view(4, 1, 32, -1)
    low = torch.cat([packed & 15, packed >> 4], dim=1).view(8, 32, -1)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None, None]
    levels = low | (((blocks[None, 16:48] >> shifts) & 1) << 4)
    return affine_values(blocks, *unpack_scales6(blocks[4:16]), levels)


def encode(x: Tensor) -> Tensor:
    """uint8 `[176, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    best = affine_search(groups.transpose(0, 1), 31, -0.5, 0.1, 15)
    scales = affine_scales(best)
    return torch.cat([scales.head, *_levels(groups, best, scales)])


@stage
def _levels(groups: Tensor, best: AffineSearch, scales: SixBits) -> tuple[Tensor, Tensor]:
    levels = affine_levels(groups, best, scales, 31)
    high = torch.zeros_like(levels[0])
    for g in range(8):
        high = high | ((levels[g] >> 4) << g)
    low = levels & 15
    return high.to(torch.uint8), (low[::2] | (low[1::2] << 4)).to(torch.uint8).view(128, -1)


ROWS = (QuantType("Q5_K", 13, 256, 176, encode, decode),)
