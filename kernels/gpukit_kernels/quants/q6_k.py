"""Q6_K: 256 values in 210 bytes, 6.5625 bits a weight; sixteen groups of 16 with an 8-bit scale.

    bytes 0-127    half h of 64 bytes: byte j (0-31) holds the low four bits of level j low and of
                   level 64 + j high, byte 32 + j those of level 32 + j and 96 + j (128 levels a half)
    bytes 128-191  half h of 32 bytes: byte j holds the high two bits of levels j, 32 + j, 64 + j, 96 + j
    bytes 192-207  scale of the groups, int8
    bytes 208-209  d, fp16

x = (d * scale) * (level - 32). Source: block_q6_K, quantize_row_q6_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
import triton
import triton.language as tl
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
from gpukit_kernels.table import QuantType, TritonPair
from gpukit_kernels.triton_bits import (
    first_largest_tl,
    load_half_tl,
    nearest_int_tl,
    nearest_level_tl,
    spread_tl,
    store_half_tl,
)
from gpukit_kernels.triton_search import load_group_tl, scale_search_tl, steps_tl


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


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, n]`: values `element` `[1, n]` of the blocks at `pointer` `[TILE, 1]`."""
    half = element // 128
    quarter = element // 32 % 4
    at = element % 32
    low = tl.load(pointer + half * 64 + quarter % 2 * 32 + at, mask=mask, other=0).to(tl.int32)
    high = tl.load(pointer + 128 + half * 32 + at, mask=mask, other=0).to(tl.int32)
    level = ((low >> (quarter // 2 * 4)) & 15) | (((high >> (quarter * 2)) & 3) << 4)
    scale = tl.load(pointer + 192 + element // 16, mask=mask, other=0).to(tl.int8, bitcast=True)
    step = load_half_tl(pointer + 208, mask) * scale.to(tl.float32)
    return step * (level.to(tl.float32) - 32.0)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """A lane a group: the sixteen groups of a block are neighbours."""
    first = tl.program_id(0).to(tl.int64) * TILE
    group = first * 16 + tl.arange(0, TILE * 16)  # [TILE * 16]
    x = load_group_tl(values, group, group < count * 16, 16)
    scale, inverse, zero = scale_search_tl(x, 32, 16)
    top = first_largest_tl(tl.reshape(scale, (TILE, 16)), 16)  # [TILE]
    empty = tl.abs(top) < 1e-15
    ratio = tl.div_rn(tl.full(top.shape, -128.0, tl.float32), top)
    d = tl.where(empty, 0.0, tl.div_rn(tl.full(top.shape, 1.0, tl.float32), ratio))
    code = tl.minimum(nearest_int_tl(spread_tl(ratio, TILE, 16) * scale), 127)
    code = tl.where(spread_tl(empty, TILE, 16), 0, (code << 24) >> 24)
    step = steps_tl(d, code, TILE, 16)
    block = first + tl.arange(0, TILE)  # [TILE]
    store_half_tl(blocks + block * 210 + 208, d, block < count)
    at = blocks + group // 16 * 210 + 192 + group % 16
    tl.store(at, code.to(tl.uint8), mask=group < count * 16)
    store_levels_tl(x, step, inverse, zero | spread_tl(empty, TILE, 16), blocks, first, count, TILE)


@triton.jit
def level_tl(x, step, inverse, zero):
    """int32 0..63: the level of one value, from the search where the step is zero."""
    found = tl.where(zero, 0.0, nearest_level_tl(x * inverse, -32, 31) + 32.0)
    level = nearest_level_tl(tl.div_rn(x, step), -32, 31) + 32.0
    return tl.where(step != 0.0, level, found).to(tl.int32)


@triton.jit
def store_levels_tl(x, step, inverse, zero, blocks, first, count, TILE: tl.constexpr):
    """Low four and high two bits. A group's number is half, quarter / 2, quarter % 2, 16s in it."""
    low_index = tl.arange(0, TILE * 8)  # [TILE, half, quarter % 2, sixteen]
    low_block = first + low_index // 8
    low_at = low_index % 8 // 4 * 64 + low_index % 4 // 2 * 32 + low_index % 2 * 16
    high_index = tl.arange(0, TILE * 4)  # [TILE, half, sixteen]
    high_block = first + high_index // 4
    high_at = 128 + high_index % 4 // 2 * 32 + high_index % 2 * 16
    low_out = blocks + low_block * 210 + low_at
    high_out = blocks + high_block * 210 + high_at
    for word in tl.static_range(8):
        low_bits = tl.zeros_like(low_index)
        high_bits = tl.zeros_like(high_index)
        for byte in tl.static_range(2):
            level = level_tl(x[word * 2 + byte], step, inverse, zero)
            by_quarter = tl.permute(tl.reshape(level, (TILE * 2, 2, 4)), (0, 2, 1))
            front, back = tl.split(by_quarter)  # quarters 0, 1 and 2, 3: [TILE * 2, 4]
            low = tl.reshape((front & 15) | ((back & 15) << 4), (TILE * 8,))
            high = tl.reshape((front >> 4) | ((back >> 4) << 4), (TILE * 2, 2, 2))
            even, odd = tl.split(tl.permute(high, (0, 2, 1)))  # [TILE * 2, 2]
            low_bits = low_bits | (low << (8 * byte))
            high_bits = high_bits | (tl.reshape(even | (odd << 2), (TILE * 4,)) << (8 * byte))
        low_words = (low_out + word * 2).to(tl.pointer_type(tl.int16))
        tl.store(low_words, low_bits.to(tl.int16), mask=low_block < count)
        high_words = (high_out + word * 2).to(tl.pointer_type(tl.int16))
        tl.store(high_words, high_bits.to(tl.int16), mask=high_block < count)


ROWS = (QuantType("Q6_K", 14, 256, 210, encode, decode, TritonPair(encode_kernel, decode_tl, 8)),)
