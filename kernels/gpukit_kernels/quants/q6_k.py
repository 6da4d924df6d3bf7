"""Q6_K: 256 values in 210 bytes, 6.5625 bits a weight; sixteen groups of 16 with an 8-bit scale.

    bytes 0-127    64 for each half of 128 levels: byte j (0-31) holds the low four bits of level j
                   low, of level 64 + j high; byte 32 + j those of level 32 + j and 96 + j
    bytes 128-191  32 for each half: byte j, the high two bits of levels j, 32 + j, 64 + j, 96 + j
    bytes 192-207  scale of the groups, int8
    bytes 208-209  d, fp16

x = (d * scale) * (level - 32).
Source: block_q6_K, quantize_row_q6_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_triton
from gpukit_kernels.bits import (
    divide,
    half_bits,
    half_round,
    half_value,
    nearest_int,
    nearest_level,
    word_bytes,
)
from gpukit_kernels.bits_triton import (
    crumb_words_tl,
    divide_tl,
    half_bits_tl,
    half_round_tl,
    load_byte_tl,
    load_half_tl,
    nearest_int_tl,
    nearest_level_tl,
    signed_byte_tl,
    store_halves_tl,
    store_word16_tl,
    store_words16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_words_tl, lanes_tl, spread_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.common import GROUP_EPS, first_largest, low_int8
from gpukit_kernels.search.common_triton import first_largest_tl
from gpukit_kernels.search.scale import ScaleSearch, scale_search
from gpukit_kernels.search.scale_triton import found_level_tl, scale_search_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair

_GROUP_EPS = tl.constexpr(GROUP_EPS)


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
    """Bytes `[210, lanes]` of float32 `[256, lanes]`."""
    return _encode(x.view(16, 16, -1), None)


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    return _encode(x.view(16, 16, -1), importance.view(16, 16, -1).transpose(0, 1))


def _encode(groups: Tensor, weights: Tensor | None) -> Tensor:
    best, zero = scale_search(groups.transpose(0, 1), weights, 32)
    scales, step, d, nothing = _scales(best, zero)
    levels = _levels(groups, best.inverse, step, nothing)
    return torch.cat([*_packed(levels), scales, d])


@stage
def _scales(best: ScaleSearch, zero: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scales, bytes `[16, lanes]`, d * scale, d, bytes `[2, lanes]`, which groups are 0."""
    top, magnitude = first_largest(best.scale)
    inverse = divide(-128.0, top)
    d = divide(1.0, inverse)
    # The C goes through int8, which keeps the low byte.
    scales = low_int8(nearest_int(inverse * best.scale).clamp(max=127))
    step = half_round(d) * scales.to(torch.float32)
    # Of a block without a scale every byte is zero.
    empty = magnitude < GROUP_EPS
    none = torch.zeros_like(scales)
    return (
        torch.where(empty, none, scales & 0xFF).to(torch.float32),
        step,
        word_bytes(torch.where(empty, none[0], half_bits(d)), 2),
        (empty | ((zero != 0) & (step == 0))).to(torch.float32),
    )


@stage
def _levels(groups: Tensor, inverse: Tensor, step: Tensor, nothing: Tensor) -> Tensor:
    """Levels `[2, 4, 32, lanes]`, taken anew, those of the search where the step is 0."""
    step = step[:, None]
    level = torch.where(step != 0, groups / step, groups * inverse[:, None])
    level = nearest_level(level, -32, 31) + 32.0
    level = torch.where(nothing[:, None] != 0, torch.zeros_like(level), level)
    return level.view(2, 4, 32, -1)


@stage
def _packed(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The low four bits, bytes `[128, lanes]`, and the high two, `[64, lanes]`."""
    levels = levels.to(torch.int32)
    low, high = levels & 15, levels >> 4
    high = high[:, 0] | (high[:, 1] << 2) | (high[:, 2] << 4) | (high[:, 3] << 6)
    return (
        (low[:, :2] | (low[:, 2:] << 4)).to(torch.float32).view(128, -1),
        high.to(torch.float32).view(64, -1),
    )


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    group = tl.arange(0, 16)[None, :]
    scale = signed_byte_tl(load_byte_tl(blocks, at[:, None] + 192 + group, mask[:, None]))
    step = load_half_tl(blocks, at + 208, mask)[:, None] * scale.to(tl.float32)  # [TILE, 16]
    start = at[:, None, None, None]
    half = tl.arange(0, 2)[None, :, None, None]
    odd = tl.arange(0, 2)[None, None, :, None]
    element = tl.arange(0, 32)[None, None, None, :]
    masked = mask[:, None, None, None]
    # Each byte of levels once: a thread has the level of one quarter and that of the next but one.
    low = load_byte_tl(blocks, start + half * 64 + odd * 32 + element, masked)
    high = load_byte_tl(blocks, start + 128 + half * 32 + element, masked) >> (2 * odd)
    first = (low & 15) | ((high & 3) << 4)
    second = (low >> 4) | (((high >> 4) & 3) << 4)
    level = tl.permute(tl.join(first, second), (0, 1, 4, 2, 3))  # [TILE, half, 2, odd, 32]
    level = tl.reshape(level, (at.shape[0], 16, 16)).to(tl.float32)
    return tl.reshape(step[:, :, None] * (level - 32.0), (at.shape[0], 256))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    _encode_tl(lanes_tl(tl.reshape(x, (x.shape[0] * 16, 16)), 16), None, out, at, mask)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 256]`."""
    lanes: tl.constexpr = x.shape[0] * 16
    weights = lanes_tl(tl.reshape(importance, (lanes, 16)), 16)
    _encode_tl(lanes_tl(tl.reshape(x, (lanes, 16)), 16), weights, out, at, mask)


@triton.jit
def _encode_tl(groups, weights, out, at, mask):
    TILE: tl.constexpr = at.shape[0]
    lanes: tl.constexpr = TILE * 16
    scale, inverse, zero = scale_search_tl(groups, weights, 32, 16)
    scale = tl.reshape(scale, (TILE, 16))
    top = first_largest_tl(scale, 16)
    full = tl.abs(top) >= _GROUP_EPS
    ratio = divide_tl(-128.0, top)
    d = tl.where(full, divide_tl(1.0, ratio), 0.0)
    # The C goes through int8, which keeps the low byte.
    code = signed_byte_tl(tl.minimum(nearest_int_tl(ratio[:, None] * scale), 127))
    code = tl.where(full[:, None], code, 0)
    pairs = tl.reshape((code & 0xFF) << (tl.arange(0, 16)[None, :] % 2 * 8), (TILE, 8, 2))
    store_words16_tl(out, at + 192, tl.sum(pairs, axis=2), mask)
    store_word16_tl(out, at + 208, half_bits_tl(d), mask)
    step = spread_tl(half_round_tl(d), TILE, 16) * tl.reshape(code, (lanes,)).to(tl.float32)
    # A zero block is zero bytes, so its levels are 0 as those of a zero group are.
    zero = zero | (spread_tl(full.to(tl.int32), TILE, 16) == 0)
    _store_levels_tl(groups, step, inverse, zero, out, at, mask)


@triton.jit
def _level_tl(v, step, inverse, zero):
    """int32 0..63: the level of one value, that of the search where the step is zero."""
    found = found_level_tl(v, inverse, zero, 32)
    level = nearest_level_tl(tl.div_rn(v, step), -32, 31) + 32.0
    return tl.where(step != 0.0, level, found).to(tl.int32)


@triton.jit
def _store_levels_tl(groups, step, inverse, zero, out, at, mask):
    """Store the low four and the high two bits."""
    TILE: tl.constexpr = at.shape[0]
    levels = ()
    for i in tl.static_range(16):
        levels = levels + (_level_tl(groups[i], step, inverse, zero),)  # noqa: RUF005
    words = byte_words_tl(levels, 4)  # [TILE * 16, 4]
    # Groups number half, which 64 levels of it, 32 or 16; the former share a byte.
    low = tl.reshape(words & 0x0F0F0F0F, (TILE, 2, 2, 4, 4))
    low = tl.sum(low << (tl.arange(0, 2)[None, None, :, None, None] * 4), axis=2)
    store_halves_tl(out, at, tl.reshape(low, (TILE, 32)), mask)
    store_halves_tl(out, at + 128, crumb_words_tl(words >> 4, TILE), mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part` of the low bits: the quarters a half has in them."""
    odd = part // 4 % 2
    low = load_eight_tl(blocks, at + part * 8, mask)
    high = load_eight_tl(blocks, at + 128 + part // 8 * 32 + part % 4 * 8, mask)
    high = high >> (2 * odd)[:, None]
    d = load_half_tl(blocks, at + 208, mask)
    scale = at + 192 + part // 8 * 8 + odd * 2 + part % 4 // 2
    first = d * signed_byte_tl(load_byte_tl(blocks, scale, mask)).to(tl.float32)
    second = d * signed_byte_tl(load_byte_tl(blocks, scale + 4, mask)).to(tl.float32)
    lower = (low & 15) | ((high << 4) & 48)
    upper = (low >> 4) | (high & 48)
    return (
        first[:, None] * (lower.to(tl.float32) - 32.0),
        second[:, None] * (upper.to(tl.float32) - 32.0),
    )


ROWS = (
    QuantType(
        FACTS["Q6_K"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            pieces=Pieces(pieces_tl, 64, 2),
            tile=8,
            vectors=parts_triton.Q6_K,
        ),
        weighted=weighted,
    ),
)
