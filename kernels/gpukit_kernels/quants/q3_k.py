"""Q3_K: 256 values in 110 bytes, 3.4375 bits a weight; sixteen groups of 16 with a 6-bit scale.

    bytes 0-31     byte j, bit g: bit 2 of level j of the 32 levels from 32 g on
    bytes 32-95    the low two bits of the levels (bits.pack_crumbs)
    bytes 96-107   scale of the groups plus 32, six bits each: byte j (0-7) the low four bits of
                   scale j low, those of scale j + 8 high; byte 8 + j (0-3) the high two bits of
                   scales j, j + 4, j + 8 and j + 12
    bytes 108-109  d, fp16

x = (d * (scale - 32)) * (level - 4).
Source: block_q3_K, quantize_row_q3_K_ref and quantize_row_q3_K_impl in llama.cpp's ggml-quants.c.
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
    pack_crumbs,
    unpack_crumbs,
    word_bytes,
)
from gpukit_kernels.bits_triton import (
    crumb_words_tl,
    divide_tl,
    half_bits_tl,
    half_round_tl,
    load_byte_tl,
    load_crumbs_tl,
    load_half_tl,
    nearest_int_tl,
    nearest_level_tl,
    signed_byte_tl,
    store_halves_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_words_tl, lanes_tl, rows_tl, spread_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.common import (
    first_largest,
    importance_weights,
    low_int8,
    scaled_squares,
    total,
)
from gpukit_kernels.search.common_triton import (
    block_squares_tl,
    first_largest_tl,
    importance_weights_tl,
    total_tl,
)
from gpukit_kernels.search.scale import ScaleSearch, found_levels, refined_search, scale_search
from gpukit_kernels.search.scale_triton import found_level_tl, refined_search_tl, scale_search_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[110, lanes]`."""
    step = half_value(blocks, 108) * (_unpack_scales(blocks[96:108]) - 32.0)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None, None]
    high = ((blocks[None, :32] >> shifts) & 1).reshape(256, -1) << 2
    levels = (unpack_crumbs(blocks[32:96]) | high).view(16, 16, -1).to(torch.float32) - 4.0
    return (step[:, None] * levels).view(256, -1)


def encode(x: Tensor) -> Tensor:
    """Bytes `[110, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(16, 16, -1)
    scale, found = refined_search(groups.transpose(0, 1), 4)
    tail, step = _scales(scale)
    return torch.cat([*_packed(_levels(groups, found, step)), tail])


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    groups = x.view(16, 16, -1)
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256)).view(16, 16, -1)
    weights = weights.transpose(0, 1)
    best, zero = scale_search(groups.transpose(0, 1), weights, 4)
    # The scales themselves are quantised by the same search, a group counts by its weights' sum.
    d, none = scale_search(best.scale, total(weights), 32)
    tail, step = _weighted_scales(best.scale, d, none)
    return torch.cat([*_packed(_weighted_levels(groups, best, zero, step)), tail])


@stage
def _scales(scale: Tensor) -> tuple[Tensor, Tensor]:
    top, _ = first_largest(scale)
    some = top != 0
    inverse = divide(-32.0, top)
    # The C goes through int8 before it clamps.
    code = low_int8(nearest_int(inverse * scale)).clamp(-32, 31) + 32
    code = torch.where(some, code, torch.zeros_like(code))
    return _tail(code, torch.where(some, divide(1.0, inverse), torch.zeros_like(top)))


@stage
def _weighted_scales(scale: Tensor, best: ScaleSearch, zero: Tensor) -> tuple[Tensor, Tensor]:
    return _tail(found_levels(scale, best.inverse, zero, 32).to(torch.int32), best.scale)


def _tail(code: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The last 14 bytes, `[14, lanes]`, and the steps that a reader makes of them."""
    step = half_round(d) * (code.to(torch.float32) - 32.0)
    return torch.cat([_pack_scales(code), word_bytes(half_bits(d), 2)]), step


def _pack_scales(code: Tensor) -> Tensor:
    low, high = code & 15, (code >> 4).view(4, 4, -1)
    high = high[0] | (high[1] << 2) | (high[2] << 4) | (high[3] << 6)
    return torch.cat([low[:8] | (low[8:] << 4), high]).to(torch.float32)


def _unpack_scales(packed: Tensor) -> Tensor:
    low = torch.cat([packed[:8] & 15, packed[:8] >> 4])
    high = torch.cat([(packed[8:] >> (2 * k)) & 3 for k in range(4)])
    return (low | (high << 4)).to(torch.float32)


@stage
def _levels(groups: Tensor, found: Tensor, step: Tensor) -> Tensor:
    return _read(groups, found, step)


@stage
def _weighted_levels(groups: Tensor, best: ScaleSearch, zero: Tensor, step: Tensor) -> Tensor:
    return _read(groups, found_levels(groups, best.inverse[:, None], zero[:, None], 4), step)


def _read(groups: Tensor, found: Tensor, step: Tensor) -> Tensor:
    """Levels `[8, 32, lanes]`, taken anew, those of the search where the step is zero."""
    step = step[:, None]
    level = nearest_level(groups / step, -4, 3) + 4.0
    return torch.where(step != 0, level, found).view(8, 32, -1)


@stage
def _packed(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The third bits, bytes `[32, lanes]`, and the low two, `[64, lanes]`."""
    levels = levels.to(torch.int32)
    high = torch.zeros_like(levels[0])
    for g in range(8):
        high = high | ((levels[g] >> 2) << g)
    return high.to(torch.float32), pack_crumbs((levels & 3).view(256, -1))


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    group = tl.arange(0, 16)[None, :]
    low = load_byte_tl(blocks, at[:, None] + 96 + group % 8, mask[:, None])
    high = load_byte_tl(blocks, at[:, None] + 104 + group % 4, mask[:, None])
    code = ((low >> (group // 8 * 4)) & 15) | (((high >> (group // 4 * 2)) & 3) << 4)
    step = load_half_tl(blocks, at + 108, mask)[:, None] * (code.to(tl.float32) - 32.0)
    group = group[:, :, None]
    within = group % 2 * 16 + tl.arange(0, 16)[None, None, :]
    top = load_byte_tl(blocks, at[:, None, None] + within, mask[:, None, None])
    levels = load_crumbs_tl(blocks, at + 32, mask) | (((top >> (group // 2)) & 1) << 2)
    return tl.reshape(step[:, :, None] * (levels.to(tl.float32) - 4.0), (at.shape[0], 256))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    TILE: tl.constexpr = x.shape[0]
    groups = lanes_tl(tl.reshape(x, (TILE * 16, 16)), 16)
    scale, found = refined_search_tl(groups, 4, 16)
    scale = tl.reshape(scale, (TILE, 16))
    top = first_largest_tl(scale, 16)
    some = top != 0.0
    inverse = divide_tl(-32.0, top)
    # The C goes through int8 before it clamps.
    code = signed_byte_tl(nearest_int_tl(inverse[:, None] * scale))
    code = tl.minimum(tl.maximum(code, -32), 31) + 32
    code = tl.where(some[:, None], code, 0)
    d = tl.where(some, divide_tl(1.0, inverse), 0.0)
    step = _store_scales_tl(code, d, out, at, mask)
    levels = ()
    for i in tl.static_range(16):
        levels = levels + (_level_tl(groups[i], step, found[i]),)  # noqa: RUF005
    _store_levels_tl(levels, out, at, mask)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 256]`."""
    TILE: tl.constexpr = x.shape[0]
    groups = lanes_tl(tl.reshape(x, (TILE * 16, 16)), 16)
    variance = 2.0 * block_squares_tl(groups, TILE, 16, 16) * (1.0 / 256)
    weights = importance_weights_tl(x, importance, variance[:, None])
    weights = lanes_tl(tl.reshape(weights, (TILE * 16, 16)), 16)
    scale, inverse, zero = scale_search_tl(groups, weights, 4, 16)
    scale = tl.reshape(scale, (TILE, 16))
    weight = tl.reshape(total_tl(weights, 16), (TILE, 16))
    # The scales themselves are quantised by the same search, a group counts by its weights' sum.
    d, block_inverse, none = scale_search_tl(lanes_tl(scale, 16), lanes_tl(weight, 16), 32, 16)
    code = found_level_tl(scale, block_inverse[:, None], none[:, None], 32).to(tl.int32)
    step = _store_scales_tl(code, d, out, at, mask)
    levels = ()
    for i in tl.static_range(16):
        level = _level_tl(groups[i], step, found_level_tl(groups[i], inverse, zero, 4))
        levels = levels + (level,)  # noqa: RUF005
    _store_levels_tl(levels, out, at, mask)


@triton.jit
def _store_scales_tl(code, d, out, at, mask):
    """Store the last 14 bytes; float32 `[TILE * 16]`: what a reader makes of the scales."""
    TILE: tl.constexpr = at.shape[0]
    group = tl.arange(0, 16)[None, :]
    low = tl.sum(tl.reshape((code & 15) << (group // 8 * 4), (TILE, 2, 8)), axis=1)
    low = tl.reshape(low << (tl.arange(0, 8)[None, :] % 4 * 8), (TILE, 2, 4))
    first, second = tl.split(tl.sum(low, axis=2))
    # Byte j of the last word takes the high bits of scales j, j + 4, j + 8 and j + 12.
    high = tl.sum((code >> 4) << (group // 4 * 2 + group % 4 * 8), axis=1)
    words = rows_tl((first, second, high, half_bits_tl(d).to(tl.int32)), 4)
    store_halves_tl(out, at + 96, words, mask, 7)
    code = tl.reshape(code, (TILE * 16,)).to(tl.float32)
    return spread_tl(half_round_tl(d), TILE, 16) * (code - 32.0)


@triton.jit
def _level_tl(v, step, found):
    """int32 0..7: the level of one value, that of the search where the step is zero."""
    level = nearest_level_tl(tl.div_rn(v, step), -4, 3) + 4.0
    return tl.where(step != 0.0, level, found).to(tl.int32)


@triton.jit
def _store_levels_tl(levels, out, at, mask):
    """Store the third bits and the low two of a tuple of 16 levels of each group."""
    TILE: tl.constexpr = at.shape[0]
    words = byte_words_tl(levels, 4)
    high = tl.reshape((words >> 2) & 0x01010101, (TILE, 8, 8)) << tl.arange(0, 8)[None, :, None]
    store_halves_tl(out, at, tl.sum(high, axis=1), mask)
    store_halves_tl(out, at + 32, crumb_words_tl(words, TILE), mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part` of the low bits: four quarters of a half."""
    half, place = part // 4, part % 4
    low = load_eight_tl(blocks, at + 32 + part * 8, mask)
    top = load_eight_tl(blocks, at + place * 8, mask) >> (half * 4)[:, None]
    d = load_half_tl(blocks, at + 108, mask)
    values = ()
    for q in tl.static_range(4):
        group = q * 2 + place // 2
        code = (load_byte_tl(blocks, at + 96 + group, mask) >> (half * 4)) & 15
        high = load_byte_tl(blocks, at + 104 + group % 4, mask) >> (half * 4 + q // 2 * 2)
        step = d * ((code | ((high & 3) << 4)).to(tl.float32) - 32.0)
        level = ((low >> (2 * q)) & 3) | (((top >> q) & 1) << 2)
        values = values + (step[:, None] * (level.to(tl.float32) - 4.0),)  # noqa: RUF005
    return values


ROWS = (
    QuantType(
        FACTS["Q3_K"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            pieces=Pieces(pieces_tl, 32, 4),
            tile=8,
            vectors=parts_triton.Q3_K,
        ),
        weighted=weighted,
    ),
)
