"""Q5_1: 32 values in 24 bytes, 6 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-3    m, fp16
    bytes 4-7    bit j: bit 4 of level j, little endian
    bytes 8-23   byte j: low four bits of level j low, those of level j + 16 high

x = d * level + m, d = (max - min) / 31, m = min.
Source: block_q5_1, quantize_row_q5_1_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_minima_triton
from gpukit_kernels.bits import (
    half_bits,
    half_value,
    pack_nibbles,
    unpack_nibbles,
    word_bytes,
)
from gpukit_kernels.bits_triton import (
    half_pair_tl,
    load_byte_tl,
    load_half_tl,
    load_nibbles_tl,
    store_nibbles_tl,
    store_words32_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import (
    byte_lanes_tl,
    fifth_bits_tl,
    nibble_lanes_tl,
    padded_rows_tl,
)
from gpukit_kernels.pieces_triton import eight_bits_tl, load_eight_tl
from gpukit_kernels.search.affine import WITH_IMPORTANCE, affine_search, found_levels
from gpukit_kernels.search.affine_triton import offset_search_tl
from gpukit_kernels.search.common import importance_weights, offset_levels, offset_scale
from gpukit_kernels.search.common_triton import offset_levels_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[24, lanes]`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[None, :, None]
    high = ((blocks[4:8, None] >> shifts) & 1).reshape(32, -1)
    levels = (unpack_nibbles(blocks[8:]) | (high << 4)).to(torch.float32)
    return levels * half_value(blocks, 0) + half_value(blocks, 2)


def encode(x: Tensor) -> Tensor:
    """Bytes `[24, lanes]` of float32 `[32, lanes]`."""
    d, low, inverse = offset_scale(x, 31)
    return _packed(d, low, offset_levels(x, low, inverse))


def weighted(x: Tensor, importance: Tensor, mean_square: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[32, lanes]`; mean squares of the rows, `[lanes]`."""
    weights = importance_weights(x, importance, mean_square)
    best, _ = affine_search(x, weights, 31, *WITH_IMPORTANCE)
    return _packed(best.scale, best.low, found_levels(x, best, 31))


@stage
def _packed(d: Tensor, low: Tensor, levels: Tensor) -> Tensor:
    levels = levels.to(torch.int32)
    fifth = torch.zeros_like(levels[0])
    for j in range(32):
        fifth = fifth | (((levels[j] >> 4) & 1) << j)
    packed = pack_nibbles(levels & 15)
    head = [word_bytes(half_bits(d), 2), word_bytes(half_bits(low), 2), word_bytes(fifth, 4)]
    return torch.cat([*head, packed])


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    element = tl.arange(0, 32)[None, :]
    byte = load_byte_tl(blocks, at[:, None] + 4 + element // 8, mask[:, None])
    high = (byte >> (element % 8)) & 1
    level = load_nibbles_tl(blocks, at + 8, mask) | (high << 4)
    d = load_half_tl(blocks, at, mask)[:, None]
    return level.to(tl.float32) * d + load_half_tl(blocks, at + 2, mask)[:, None]


@triton.jit
def encode_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`."""
    d, low, levels = offset_levels_tl(x, 31)
    levels = byte_lanes_tl(levels, 8)
    words = (half_pair_tl(d, low), fifth_bits_tl(levels)) + nibble_lanes_tl(levels)  # noqa: RUF005
    store_words32_tl(out, at, padded_rows_tl(words, 8), mask, 6)


@triton.jit
def weighted_tl(x, importance, mean_square, out, at, mask):
    """Store float32 `[TILE, 32]`, with `importance` `[TILE, 32]` and `mean_square` `[TILE]`."""
    d, low, level = offset_search_tl(x, importance, mean_square, 31)
    _store_tl(d, low, level, out, at, mask)


@triton.jit
def _store_tl(d, low, level, out, at, mask):
    element = tl.arange(0, 32)[None, :]
    high = tl.sum(((level >> 4) & 1) << element, axis=1)
    store_words32_tl(out, at, tl.join(half_pair_tl(d, low), high), mask)
    store_nibbles_tl(out, at + 8, level & 15, mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    byte = load_eight_tl(blocks, at + 8 + part * 8, mask)
    first = eight_bits_tl(load_byte_tl(blocks, at + 4 + part, mask), 4)
    second = eight_bits_tl(load_byte_tl(blocks, at + 6 + part, mask), 4)
    d = load_half_tl(blocks, at, mask)[:, None]
    low = load_half_tl(blocks, at + 2, mask)[:, None]
    values = ((byte & 15) | first).to(tl.float32) * d + low
    return values, ((byte >> 4) | second).to(tl.float32) * d + low


ROWS = (
    QuantType(
        FACTS["Q5_1"],
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
            vectors=parts_minima_triton.Q5_1,
        ),
        weighted=weighted,
    ),
)
