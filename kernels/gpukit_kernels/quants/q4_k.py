"""Q4_K: 256 values in 144 bytes, 4.5 bits a weight; eight groups of 32 with a 6-bit scale and min.

    bytes 0-1     d, fp16
    bytes 2-3     dmin, fp16
    bytes 4-15    scale and min of the groups, 6 bits each (bits.pack_scales6)
    bytes 16-143  byte 32 g + j: level j of group 2 g low, that of group 2 g + 1 high

x = (d * scale) * level - (dmin * min).
Source: block_q4_K, quantize_row_q4_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
import triton
import triton.language as tl
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
from gpukit_kernels.table import QuantType, TritonPair
from gpukit_kernels.triton_bits import load_half_tl, store_half_tl
from gpukit_kernels.triton_search import (
    affine_level_tl,
    affine_search_tl,
    load_group_tl,
    scales6_at_tl,
    six_bits_tl,
    steps_tl,
    store_scales6_tl,
)


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


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, n]`: values `element` `[1, n]` of the blocks at `pointer` `[TILE, 1]`."""
    byte = tl.load(pointer + 16 + element // 64 * 32 + element % 32, mask=mask, other=0)
    level = (byte.to(tl.int32) >> (element // 32 % 2 * 4)) & 15
    scale, low = scales6_at_tl(pointer + 4, element // 32, mask)
    step = load_half_tl(pointer, mask) * scale
    return step * level.to(tl.float32) - load_half_tl(pointer + 2, mask) * low


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """A lane a group: the eight groups of a block are neighbours."""
    first = tl.program_id(0).to(tl.int64) * TILE
    group = first * 8 + tl.arange(0, TILE * 8)  # [TILE * 8]
    x = load_group_tl(values, group, group < count * 8, 32)
    scale, low, inverse, shift = affine_search_tl(x, 15, -1.0, 0.1, 20, 32)
    scale6, d = six_bits_tl(scale, TILE, 8)
    low6, dmin = six_bits_tl(0.0 - low, TILE, 8)
    block = first + tl.arange(0, TILE)  # [TILE]
    out = blocks + block * 144
    store_half_tl(out, d, block < count)
    store_half_tl(out + 2, dmin, block < count)
    store_scales6_tl(out, scale6, low6, block < count, TILE)
    step = steps_tl(d, scale6, TILE, 8)
    offset = steps_tl(dmin, low6, TILE, 8)
    pair = first * 4 + tl.arange(0, TILE * 4)  # [TILE * 4], two groups share a byte
    at = blocks + pair // 4 * 144 + 16 + pair % 4 * 32
    for word in tl.static_range(8):
        bits = tl.zeros_like(pair).to(tl.int32)
        for byte in tl.static_range(4):
            level = affine_level_tl(x[word * 4 + byte], step, offset, inverse, shift, 15)
            even, odd = tl.split(tl.reshape(level, (TILE * 4, 2)))
            bits = bits | ((even | (odd << 4)) << (8 * byte))
        tl.store((at + word * 4).to(tl.pointer_type(tl.int32)), bits, mask=pair < count * 4)


ROWS = (QuantType("Q4_K", 12, 256, 144, encode, decode, TritonPair(encode_kernel, decode_tl, 16)),)
