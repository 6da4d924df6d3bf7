"""Q4_0: 32 values in 18 bytes, 4.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-17   byte j: level j low, level j + 16 high

x = d * (level - 8), d = the value of largest magnitude / -8.
Source: block_q4_0, quantize_row_q4_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_triton
from gpukit_kernels.bits import half_bits, half_value, pack_nibbles, unpack_nibbles, word_bytes
from gpukit_kernels.bits_triton import (
    half_bits_tl,
    load_half_tl,
    load_nibbles_tl,
    store_nibbles_tl,
    store_word16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_lanes_tl, nibble_lanes_tl, store_behind_half_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.common import importance_weights, signed_levels, signed_scale
from gpukit_kernels.search.common_triton import signed_levels_tl
from gpukit_kernels.search.scale import scale_search, searched_levels
from gpukit_kernels.search.scale_triton import signed_search_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[18, lanes]`."""
    levels = unpack_nibbles(blocks[2:]).to(torch.float32) - 8.0
    return levels * half_value(blocks, 0)


def encode(x: Tensor) -> Tensor:
    """Bytes `[18, lanes]` of float32 `[32, lanes]`."""
    d, inverse = signed_scale(x, 8)
    return _packed(d, signed_levels(x, inverse, 8))


def weighted(x: Tensor, importance: Tensor, mean_square: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[32, lanes]`; mean squares of the rows, `[lanes]`."""
    best, zero = scale_search(x, importance_weights(x, importance, mean_square), 8)
    return _packed(best.scale, searched_levels(x, best.inverse, zero, 8))


@stage
def _packed(d: Tensor, levels: Tensor) -> Tensor:
    return torch.cat([word_bytes(half_bits(d), 2), pack_nibbles(levels.to(torch.int32))])


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    level = load_nibbles_tl(blocks, at + 2, mask).to(tl.float32) - 8.0
    return level * load_half_tl(blocks, at, mask)[:, None]


@triton.jit
def encode_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`."""
    d, levels = signed_levels_tl(x, 8)
    # An infinite 1 / d leaves levels of zero, as the C's bytes have them.
    head = half_bits_tl(d).to(tl.int32)
    store_behind_half_tl(out, at, head, nibble_lanes_tl(byte_lanes_tl(levels, 8)), mask, 4)


@triton.jit
def weighted_tl(x, importance, mean_square, out, at, mask):
    """Store float32 `[TILE, 32]`, with `importance` `[TILE, 32]` and `mean_square` `[TILE]`."""
    d, levels = signed_search_tl(x, importance, mean_square, 8)
    _store_tl(d, levels, out, at, mask)


@triton.jit
def _store_tl(d, levels, out, at, mask):
    store_word16_tl(out, at, half_bits_tl(d), mask)
    # An infinite 1 / d leaves levels below zero; the C's bytes keep their low four bits, or'd.
    store_nibbles_tl(out, at + 2, levels & 15, mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    byte = load_eight_tl(blocks, at + 2 + part * 8, mask)
    d = load_half_tl(blocks, at, mask)[:, None]
    return ((byte & 15).to(tl.float32) - 8.0) * d, ((byte >> 4).to(tl.float32) - 8.0) * d


ROWS = (
    QuantType(
        FACTS["Q4_0"],
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
            vectors=parts_triton.Q4_0,
        ),
        weighted=weighted,
    ),
)
