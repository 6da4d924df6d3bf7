"""Q4_1: 32 values in 20 bytes, 5 bits a weight.

    bytes 0-1   d, fp16
    bytes 2-3   m, fp16
    bytes 4-19  byte j: level j low, level j + 16 high

x = d * level + m, d = (max - min) / 15, m = min.
Source: block_q4_1, quantize_row_q4_1_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_minima_triton
from gpukit_kernels.bits import half_bits, half_value, pack_nibbles, unpack_nibbles, word_bytes
from gpukit_kernels.bits_triton import (
    half_pair_tl,
    load_half_tl,
    load_nibbles_tl,
    store_nibbles_tl,
    store_word32_tl,
    store_words32_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_lanes_tl, nibble_lanes_tl, padded_rows_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.affine import WITH_IMPORTANCE, affine_search, found_levels
from gpukit_kernels.search.affine_triton import offset_search_tl
from gpukit_kernels.search.common import importance_weights, low_int8, offset_levels, offset_scale
from gpukit_kernels.search.common_triton import offset_levels_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[20, lanes]`."""
    levels = unpack_nibbles(blocks[4:]).to(torch.float32)
    return levels * half_value(blocks, 0) + half_value(blocks, 2)


def encode(x: Tensor) -> Tensor:
    """Bytes `[20, lanes]` of float32 `[32, lanes]`."""
    d, low, inverse = offset_scale(x, 15)
    return _packed(d, low, _clamped(offset_levels(x, low, inverse)))


@stage
def _clamped(levels: Tensor) -> Tensor:
    # The C goes through int8 before it takes the minimum.
    return low_int8(levels.to(torch.int32)).clamp(max=15).to(torch.float32)


def weighted(x: Tensor, importance: Tensor, mean_square: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[32, lanes]`; mean squares of the rows, `[lanes]`."""
    weights = importance_weights(x, importance, mean_square)
    best, _ = affine_search(x, weights, 15, *WITH_IMPORTANCE)
    return _packed(best.scale, best.low, found_levels(x, best, 15))


@stage
def _packed(d: Tensor, low: Tensor, levels: Tensor) -> Tensor:
    head = [word_bytes(half_bits(d), 2), word_bytes(half_bits(low), 2)]
    return torch.cat([*head, pack_nibbles(levels.to(torch.int32))])


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    level = load_nibbles_tl(blocks, at + 4, mask).to(tl.float32)
    return (
        level * load_half_tl(blocks, at, mask)[:, None]
        + load_half_tl(blocks, at + 2, mask)[:, None]
    )


@triton.jit
def encode_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`."""
    d, low, levels = offset_levels_tl(x, 15)
    words = (half_pair_tl(d, low),) + nibble_lanes_tl(byte_lanes_tl(levels, 8))  # noqa: RUF005
    store_words32_tl(out, at, padded_rows_tl(words, 8), mask, 5)


@triton.jit
def weighted_tl(x, importance, mean_square, out, at, mask):
    """Store float32 `[TILE, 32]`, with `importance` `[TILE, 32]` and `mean_square` `[TILE]`."""
    d, low, level = offset_search_tl(x, importance, mean_square, 15)
    _store_tl(d, low, level, out, at, mask)


@triton.jit
def _store_tl(d, low, level, out, at, mask):
    store_word32_tl(out, at, half_pair_tl(d, low), mask)
    store_nibbles_tl(out, at + 4, level & 15, mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    byte = load_eight_tl(blocks, at + 4 + part * 8, mask)
    d = load_half_tl(blocks, at, mask)[:, None]
    low = load_half_tl(blocks, at + 2, mask)[:, None]
    return (byte & 15).to(tl.float32) * d + low, (byte >> 4).to(tl.float32) * d + low


ROWS = (
    QuantType(
        FACTS["Q4_1"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            pieces=Pieces(pieces_tl, 16, 2),
            tile=128,
            lanes=True,
            weighted_tile=128,
            vectors=parts_minima_triton.Q4_1,
        ),
        weighted=weighted,
    ),
)
