"""IQ1_S: 256 values in 50 bytes, 1.5625 bits a weight; eight groups of 32, 3-bit scale.

    bytes 0-1    d, fp16
    bytes 2-33   one an octet: its row of the codebook, low 8 bits
    bytes 34-49  two for each 32 values: the three high bits of the four rows, the scale, 3 bits,
                 and the shift, one bit

x = (d * (2 * scale + 1)) * (level - 1 + 1/8), or - 1/8 where the shift is 1.
Source: block_iq1_s, quantize_row_iq1_s_impl, dequantize_row_iq1_s in llama.cpp's ggml-quants.c.
"""

from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import grids
from gpukit_kernels.bits import half_bits, half_value, word_bytes
from gpukit_kernels.bits_triton import (
    half_bits_tl,
    load_byte_tl,
    load_half_tl,
    store_bytes_tl,
    store_word16_tl,
    store_words16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.pieces_triton import words2_tl
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.search.grid_triton import (
    fields_tl,
    octet_weights_tl,
    octets_tl,
)
from gpukit_kernels.search.groups_triton import of_groups_tl
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.search.octets import Octets, octets_of, row_numbers, scale_codes
from gpukit_kernels.search.octets_triton import (
    octets_found_tl,
    row_numbers_tl,
    scale_codes_tl,
)
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

# A group whose largest magnitude is below it counts as zero (GROUP_MAX_EPS_IQ1_S).
LEAST = 1e-12

_LEAST = tl.constexpr(LEAST)

GRID = partial(grids.grid, "IQ1_S")
OCTETS = partial(grids.row_bytes, "IQ1_S", 8, grids.iq1_numbers)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[50, lanes]`."""
    word = grids.words(blocks[34:], 2)
    index = blocks[2:34].to(torch.int32) | (grids.fields(word, 3, 4) << 8)
    levels = grids.rows(GRID(blocks.device), index, 8)
    # An eighth of the step times eight times the level is exact.
    step = half_value(blocks, 0) * (2 * ((word >> 12) & 7) + 1).to(torch.float32) * 0.125
    return grids.scaled(step, grids.iq1_levels(levels, word >> 15))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """Bytes `[50, lanes]` of float32 `[256, lanes]` with float32 `importance` `[256, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256))
    return torch.cat(_packed(octets_of(x, weights, 32, LEAST, halves=False)))


@stage
def _packed(found: Octets) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes of d, of rows and of scales."""
    codes, d, some = scale_codes(found.scale)
    word = torch.where(some, codes | (found.down[0] << 3), 0) << 12
    rows = row_numbers(found)
    for k in range(4):
        word = word | ((rows[k] >> 8) << (3 * k))
    low = (rows & 255).transpose(0, 1).flatten(0, 1).to(torch.float32)
    words = torch.stack([word & 255, (word >> 8) & 255], dim=1).flatten(0, 1).to(torch.float32)
    return word_bytes(half_bits(d * 1.125), 2), low, words


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    TILE: tl.constexpr = at.shape[0]
    four = tl.arange(0, 8)[None, :]
    word = grids.load_word_tl(blocks, at[:, None] + 34 + four * 2, 2, mask[:, None])  # [TILE, 8]
    octet = tl.arange(0, 4)[None, None, :]
    place = at[:, None, None] + 2 + four[:, :, None] * 4 + octet
    low = load_byte_tl(blocks, place, mask[:, None, None])
    index = low | (((word[:, :, None] >> (octet * 3)) & 7) << 8)  # [TILE, 8, 4]
    levels = grids.rows_of_eight_tl(table, tl.reshape(index, (TILE, 32)))
    scale = (2 * ((word >> 12) & 7) + 1).to(tl.float32)
    step = load_half_tl(blocks, at, mask)[:, None] * scale * 0.125
    numbers = grids.iq1_levels_tl(tl.reshape(levels, (TILE, 8, 32)), word >> 15)
    return tl.reshape(step[:, :, None] * numbers.to(tl.float32), (TILE, 256))


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    word = grids.load_word_tl(blocks, at + 34 + group * 2, 2, mask)
    step = load_half_tl(blocks, at, mask) * (2 * ((word >> 12) & 7) + 1).to(tl.float32) * 0.125
    shift = 2 * ((word >> 15) & 1)
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        high = (word >> (octet * 3)) & 7
        index = load_byte_tl(blocks, at + 2 + group * 4 + octet, mask) | (high << 8)
        numbers = grids.octet_tl(*words2_tl(table + 2 * index, mask))
        shifted = (numbers - shift[:, None]).to(tl.float32)
        values = values + (step[:, None] * shifted,)  # noqa: RUF005
    return values


@triton.jit
def encode_tl(x, importance, book, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`; `importance` is as x."""
    TILE: tl.constexpr = x.shape[0]
    octets = octets_tl(x)
    weights = octet_weights_tl(octets, importance, 2.0)
    entries, down, scale = octets_found_tl(octets, weights, book, 32, _LEAST)
    codes, d, some = scale_codes_tl(of_groups_tl(scale, TILE, 4))
    down = tl.max(tl.reshape(down, (TILE, 8, 4)), axis=2)
    rows = tl.reshape(row_numbers_tl(entries), (TILE, 32))
    words = tl.where(some[:, None], codes | (down << 3), 0) << 12
    store_word16_tl(out, at, half_bits_tl(d * 1.125).to(tl.int32), mask)
    store_bytes_tl(out, at + 2, rows & 255, mask)
    store_words16_tl(out, at + 34, words | fields_tl(rows >> 8, 3, 4), mask)


ROWS = (
    QuantType(
        FACTS["IQ1_S"],
        None,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=2,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ1_S"), plain=False),
            row_warps=8,  # with four Triton 3.9.0 spills two registers on sm_90
        ),
        weighted=weighted,
    ),
)
