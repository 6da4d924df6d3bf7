"""Q2_K: 256 values in 84 bytes, 2.625 bits a weight; sixteen groups of 16, 4-bit scale and min.

    bytes 0-15   scale of the groups low, min high
    bytes 16-79  the levels, two bits each (bits.pack_crumbs)
    bytes 80-81  d, fp16
    bytes 82-83  dmin, fp16

x = (d * scale) * level - (dmin * min).
Source: block_q2_K, quantize_row_q2_K_ref and quantize_row_q2_K_impl in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_minima_triton
from gpukit_kernels.bits import (
    half_bits,
    half_round,
    half_value,
    pack_crumbs,
    unpack_crumbs,
    word_bytes,
)
from gpukit_kernels.bits_triton import (
    crumb_words_tl,
    half_pair_tl,
    half_round_tl,
    load_byte_tl,
    load_crumbs_tl,
    load_half_tl,
    negated_tl,
    store_word32_tl,
    store_words32_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_words_tl, lanes_tl, spread_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.affine import (
    WITH_IMPORTANCE,
    AffineSearch,
    Steps,
    affine_search,
    read_levels,
    scales_and_minima,
    top_codes,
)
from gpukit_kernels.search.affine_triton import affine_search_tl, read_levels_tl, top_codes_tl
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.search.common_triton import block_squares_tl, importance_weights_tl
from gpukit_kernels.search.positive import positive_search
from gpukit_kernels.search.positive_triton import positive_codes_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[84, lanes]`."""
    step = half_value(blocks, 80) * (blocks[:16] & 15).to(torch.float32)
    offset = half_value(blocks, 82) * (blocks[:16] >> 4).to(torch.float32)
    levels = unpack_crumbs(blocks[16:80]).view(16, 16, -1).to(torch.float32)
    return (step[:, None] * levels - offset[:, None]).view(256, -1)


def encode(x: Tensor) -> Tensor:
    """Bytes `[84, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(16, 16, -1)
    # Weights are |x|: nothing is added to the magnitude.
    nothing = torch.zeros(groups[:, 0].shape)
    best, _ = affine_search(groups.transpose(0, 1), nothing, 3, -0.5, 0.1, 15, absolute=True)
    scales, tail, steps = _scales(best)
    return torch.cat([scales, _packed(read_levels(groups, best, steps, 3, False)), tail])


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    groups = x.view(16, 16, -1)
    weights = importance_weights(x, importance, scaled_squares(x, 1.0, 256)).view(16, 16, -1)
    best, weight = affine_search(
        groups.transpose(0, 1), weights.transpose(0, 1), 3, *WITH_IMPORTANCE
    )
    codes, d = positive_search(scales_and_minima(best), weight, 15)
    scales, tail, steps = _weighted_scales(codes, d)
    return torch.cat([scales, _packed(read_levels(groups, best, steps, 3, True)), tail])


@stage
def _scales(best: AffineSearch) -> tuple[Tensor, Tensor, Steps]:
    scale, d = top_codes(best.scale, 15)
    low, dmin = top_codes(-best.low, 15)
    return _head(scale, low, d, dmin)


@stage
def _weighted_scales(codes: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Steps]:
    codes = codes.to(torch.int32)
    return _head(codes[:, 0], codes[:, 1], d[0], d[1])


def _head(scale: Tensor, low: Tensor, d: Tensor, dmin: Tensor) -> tuple[Tensor, Tensor, Steps]:
    """Scale bytes, d and dmin bytes, and what a reader makes of them."""
    # Scales are not clamped: one below zero reaches into the bits of the minimum.
    packed = (scale | (low << 4)) & 0xFF
    steps = Steps(
        half_round(d) * (packed & 15).to(torch.float32),
        half_round(dmin) * (packed >> 4).to(torch.float32),
    )
    tail = torch.cat([word_bytes(half_bits(d), 2), word_bytes(half_bits(dmin), 2)])
    return packed.to(torch.float32), tail, steps


@stage
def _packed(levels: Tensor) -> Tensor:
    return pack_crumbs(levels.view(256, -1).to(torch.int32))


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    byte = load_byte_tl(blocks, at[:, None] + tl.arange(0, 16)[None, :], mask[:, None])
    step = load_half_tl(blocks, at + 80, mask)[:, None] * (byte & 15).to(tl.float32)
    offset = load_half_tl(blocks, at + 82, mask)[:, None] * (byte >> 4).to(tl.float32)
    levels = load_crumbs_tl(blocks, at + 16, mask).to(tl.float32)
    return tl.reshape(step[:, :, None] * levels - offset[:, :, None], (at.shape[0], 256))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    TILE: tl.constexpr = x.shape[0]
    groups = lanes_tl(tl.reshape(x, (TILE * 16, 16)), 16)
    # Weights are |x|: nothing is added to the magnitude.
    scale, low, inverse, shift, _ = affine_search_tl(
        groups, tl.zeros((TILE * 16,), tl.float32), 3, -0.5, 0.1, 15, 16, False, True
    )
    scale_code, d = top_codes_tl(tl.reshape(scale, (TILE, 16)), 15)
    low_code, dmin = top_codes_tl(tl.reshape(negated_tl(low), (TILE, 16)), 15)
    _store_tl(groups, inverse, shift, scale_code, low_code, d, dmin, out, at, mask, False)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 256]`."""
    TILE: tl.constexpr = x.shape[0]
    groups = lanes_tl(tl.reshape(x, (TILE * 16, 16)), 16)
    variance = block_squares_tl(groups, TILE, 16, 16) * (1.0 / 256)
    weights = importance_weights_tl(x, importance, variance[:, None])
    weights = lanes_tl(tl.reshape(weights, (TILE * 16, 16)), 16)
    scale, low, inverse, shift, weight = affine_search_tl(
        groups, weights, 3, -0.9, 0.05, 36, 16, True, False
    )
    scale_code, low_code, d, dmin = positive_codes_tl(
        tl.reshape(scale, (TILE, 16)),
        tl.reshape(negated_tl(low), (TILE, 16)),
        tl.reshape(weight, (TILE, 16)),
        15,
    )
    _store_tl(groups, inverse, shift, scale_code, low_code, d, dmin, out, at, mask, True)


@triton.jit
def _store_tl(
    groups, inverse, shift, scale_code, low_code, d, dmin, out, at, mask, GIVEN: tl.constexpr
):
    TILE: tl.constexpr = at.shape[0]
    lanes: tl.constexpr = TILE * 16
    # Scales are not clamped: one below zero reaches into the bits of the minimum.
    packed = (scale_code | (low_code << 4)) & 0xFF
    words = tl.reshape(packed << (tl.arange(0, 16)[None, :] % 4 * 8), (TILE, 4, 4))
    store_words32_tl(out, at, tl.sum(words, axis=2), mask)
    store_word32_tl(out, at + 80, half_pair_tl(d, dmin), mask)
    code = tl.reshape(packed, (lanes,))
    step = spread_tl(half_round_tl(d), TILE, 16) * (code & 15).to(tl.float32)
    offset = spread_tl(half_round_tl(dmin), TILE, 16) * (code >> 4).to(tl.float32)
    levels = read_levels_tl(groups, step, offset, inverse, shift, 3, 16, GIVEN)
    store_words32_tl(out, at + 16, crumb_words_tl(byte_words_tl(levels, 4), TILE), mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part` of the levels: four quarters of a half."""
    levels = load_eight_tl(blocks, at + 16 + part * 8, mask)
    d = load_half_tl(blocks, at + 80, mask)
    dmin = load_half_tl(blocks, at + 82, mask)
    values = ()
    for q in tl.static_range(4):
        byte = load_byte_tl(blocks, at + part // 4 * 8 + q * 2 + part % 4 // 2, mask)
        step = (d * (byte & 15).to(tl.float32))[:, None]
        offset = (dmin * (byte >> 4).to(tl.float32))[:, None]
        level = ((levels >> (2 * q)) & 3).to(tl.float32)
        values = values + (step * level - offset,)  # noqa: RUF005
    return values


ROWS = (
    QuantType(
        FACTS["Q2_K"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            pieces=Pieces(pieces_tl, 32, 4),
            tile=8,
            vectors=parts_minima_triton.Q2_K,
        ),
        weighted=weighted,
    ),
)
