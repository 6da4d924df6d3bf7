"""Q6_K: 256 values in 210 bytes, 6.5625 bits a weight; sixteen groups of 16 with an 8-bit scale.

    bytes 0-127    half h of 64 bytes: byte j (0-31) holds the low four bits of level j low and of
                   level 64 + j high, byte 32 + j those of level 32 + j and 96 + j (128 levels a half)
    bytes 128-191  half h of 32 bytes: byte j holds the high two bits of levels j, 32 + j, 64 + j, 96 + j
    bytes 192-207  scale of the groups, int8
    bytes 208-209  d, fp16

x = (d * scale) * (level - 32). Source: block_q6_K, quantize_row_q6_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import (
    divide,
    half_bits,
    half_round,
    half_value,
    nearest_int,
    nearest_level,
    word_bytes,
)
from gpukit_kernels.search import GROUP_EPS, ScaleSearch, first_largest, scale_search
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[210, lanes]`."""
    low = blocks[:128].view(2, 1, 64, -1)
    high = blocks[128:192].view(2, 32, -1)
    low = torch.cat([low & 15, low >> 4], dim=1).view(2, 4, 32, -1)
    high = torch.stack([(high >> (2 * k)) & 3 for k in range(4)], dim=1)
    levels = (low | (high << 4)).view(16, 16, -1).to(torch.float32) - 32.0
    scales = blocks[192:208].view(torch.int8).to(torch.float32)
    return ((half_value(blocks, 208) * scales)[:, None] * levels).view(256, -1)


def encode(x: Tensor) -> Tensor:
    """uint8 `[210, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(16, 16, -1)
    best, zero = scale_search(groups.transpose(0, 1), 32)
    scales, step, d, empty = _scales(best)
    block = torch.cat([*_levels(groups, best, zero, step), scales, d])
    return torch.where(empty, torch.zeros_like(block), block)


@stage
def _scales(best: ScaleSearch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scales uint8 `[16, lanes]`, d * scale float32 `[16, lanes]`, d uint8 `[2, lanes]`, which are zero."""
    top, magnitude = first_largest(best.scale)
    inverse = divide(-128.0, top)
    d = divide(1.0, inverse)
    # The C goes through int8, which keeps the low byte.
    scales = nearest_int(inverse * best.scale).clamp(max=127).to(torch.int8)
    step = half_round(d) * scales.to(torch.float32)
    return scales.view(torch.uint8), step, word_bytes(half_bits(d), 2), magnitude < GROUP_EPS


@stage
def _levels(groups: Tensor, best: ScaleSearch, zero: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Low four bits, uint8 `[128, lanes]`, and high two, uint8 `[64, lanes]`, of the levels."""
    step = step[:, None]
    found = nearest_level(groups * best.inverse[:, None], -32, 31) + 32.0
    found = torch.where(zero[:, None], torch.zeros_like(found), found)
    level = nearest_level(groups / step, -32, 31) + 32.0
    level = torch.where(step != 0, level, found).to(torch.int32).view(2, 4, 32, -1)
    low = level & 15
    high = level >> 4
    high = high[:, 0] | (high[:, 1] << 2) | (high[:, 2] << 4) | (high[:, 3] << 6)
    return (
        (low[:, :2] | (low[:, 2:] << 4)).to(torch.uint8).view(128, -1),
        high.to(torch.uint8).view(64, -1),
    )


ROWS = (QuantType("Q6_K", 14, 256, 210, encode, decode),)
