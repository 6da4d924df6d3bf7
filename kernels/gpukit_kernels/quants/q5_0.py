"""Q5_0: 32 values in 22 bytes, 5.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-5    bit j: bit 4 of level j, little endian
    bytes 6-21   byte j: low four bits of level j low, those of level j + 16 high

x = d * (level - 16), d = the value of largest magnitude / -16.
Source: block_q5_0, quantize_row_q5_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_triton
from gpukit_kernels.bits import half_bits, half_value, pack_nibbles, unpack_nibbles, word_bytes
from gpukit_kernels.bits_triton import (
    half_bits_tl,
    load_byte_tl,
    load_half_tl,
    load_nibbles_tl,
    store_halves_tl,
    store_nibbles_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import (
    byte_lanes_tl,
    fifth_bits_tl,
    nibble_lanes_tl,
    store_behind_half_tl,
)
from gpukit_kernels.pieces_triton import eight_bits_tl, load_eight_tl
from gpukit_kernels.search.common import importance_weights, signed_levels, signed_scale
from gpukit_kernels.search.common_triton import signed_levels_tl
from gpukit_kernels.search.scale import scale_search, searched_levels
from gpukit_kernels.search.scale_triton import signed_search_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[22, lanes]`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[None, :, None]
    high = ((blocks[2:6, None] >> shifts) & 1).reshape(32, -1)
    levels = (unpack_nibbles(blocks[6:]) | (high << 4)).to(torch.float32) - 16.0
    return levels * half_value(blocks, 0)


def encode(x: Tensor) -> Tensor:
    """Bytes `[22, lanes]` of float32 `[32, lanes]`."""
    d, inverse = signed_scale(x, 16)
    return _packed(d, signed_levels(x, inverse, 16))


def weighted(x: Tensor, importance: Tensor, mean_square: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[32, lanes]`; mean squares of the rows, `[lanes]`."""
    best, zero = scale_search(x, importance_weights(x, importance, mean_square), 16)
    return _packed(best.scale, searched_levels(x, best.inverse, zero, 16))


@stage
def _packed(d: Tensor, levels: Tensor) -> Tensor:
    levels = levels.to(torch.int32)
    high = torch.zeros_like(levels[0])
    for j in range(32):
        high = high | ((levels[j] >> 4) << j)
    low = pack_nibbles(levels & 15)
    return torch.cat([word_bytes(half_bits(d), 2), word_bytes(high, 4), low])


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    element = tl.arange(0, 32)[None, :]
    byte = load_byte_tl(blocks, at[:, None] + 2 + element // 8, mask[:, None])
    high = (byte >> (element % 8)) & 1
    level = load_nibbles_tl(blocks, at + 6, mask) | (high << 4)
    return (level.to(tl.float32) - 16.0) * load_half_tl(blocks, at, mask)[:, None]


@triton.jit
def encode_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`."""
    d, levels = signed_levels_tl(x, 16)
    levels = byte_lanes_tl(levels, 8)
    words = (fifth_bits_tl(levels),) + nibble_lanes_tl(levels)  # noqa: RUF005
    store_behind_half_tl(out, at, half_bits_tl(d).to(tl.int32), words, mask, 8)


@triton.jit
def weighted_tl(x, importance, mean_square, out, at, mask):
    """Store float32 `[TILE, 32]`, with `importance` `[TILE, 32]` and `mean_square` `[TILE]`."""
    d, levels = signed_search_tl(x, importance, mean_square, 16)
    _store_tl(d, levels, out, at, mask)


@triton.jit
def _store_tl(d, levels, out, at, mask):
    high = tl.sum(((levels >> 4) & 1) << tl.arange(0, 32)[None, :], axis=1)
    head = (half_bits_tl(d).to(tl.int32) & 0xFFFF) | (high << 16)
    store_halves_tl(out, at, tl.join(head, high >> 16), mask, 3)
    store_nibbles_tl(out, at + 6, levels & 15, mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    byte = load_eight_tl(blocks, at + 6 + part * 8, mask)
    first = eight_bits_tl(load_byte_tl(blocks, at + 2 + part, mask), 4)
    second = eight_bits_tl(load_byte_tl(blocks, at + 4 + part, mask), 4)
    d = load_half_tl(blocks, at, mask)[:, None]
    low = (((byte & 15) | first).to(tl.float32) - 16.0) * d
    return low, (((byte >> 4) | second).to(tl.float32) - 16.0) * d


ROWS = (
    QuantType(
        FACTS["Q5_0"],
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
            vectors=parts_triton.Q5_0,
        ),
        weighted=weighted,
    ),
)
