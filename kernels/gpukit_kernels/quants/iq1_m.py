"""IQ1_M: 256 values in 56 bytes, 1.75 bits a weight; sixteen groups of 16, 3-bit scale.

    bytes 0-31   one an octet: its row of the codebook, low 8 bits
    bytes 32-47  four bits an octet: the three high bits of its row, and its shift
    bytes 48-55  two for each 64 values: the scale of each 16, 3 bits, and on top four bits of d,
                 fp16, the lowest first

x = (d * (2 * scale + 1)) * (level - 1 + 1/8), or - 1/8 where the shift is 1.
Source: block_iq1_m, quantize_row_iq1_m_impl, dequantize_row_iq1_m in llama.cpp's ggml-quants.c.
"""

from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import grids
from gpukit_kernels.bits import half_bits
from gpukit_kernels.bits_triton import (
    half_bits_tl,
    load_byte_tl,
    store_bytes_tl,
    store_words16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import spread_tl
from gpukit_kernels.pieces_triton import words2_tl
from gpukit_kernels.search.common import added, importance_weights, scaled_squares
from gpukit_kernels.search.grid_triton import (
    fields_tl,
    octet_squares_tl,
    octet_weights_tl,
    octets_tl,
)
from gpukit_kernels.search.groups_triton import of_groups_tl
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.search.octets import Octets, numbers_of, octets_of, row_numbers, scale_codes
from gpukit_kernels.search.octets_triton import (
    lowest_tl,
    octet_sums_tl,
    octets_found_tl,
    row_numbers_tl,
    scale_codes_tl,
)
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

# A group whose largest magnitude is below it counts as zero (GROUP_MAX_EPS_IQ1_M).
LEAST = 1e-7

_LEAST = tl.constexpr(LEAST)

# The codebook of IQ1_S.
GRID = partial(grids.grid, "IQ1_S")
OCTETS = partial(grids.row_bytes, "IQ1_S", 8, grids.iq1_numbers)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[56, lanes]`."""
    high = grids.fields(blocks[32:48], 4, 2).to(torch.int32)
    levels = grids.rows(GRID(blocks.device), blocks[:32].to(torch.int32) | ((high & 7) << 8), 8)
    word = grids.words(blocks[48:], 2)
    top = word >> 12
    d = top[0] | (top[1] << 4) | (top[2] << 8) | (top[3] << 12)
    d = d.to(torch.int16).view(torch.float16).to(torch.float32)
    # An eighth of the step times eight times the level is exact.
    step = d * (2 * grids.fields(word, 3, 4) + 1).to(torch.float32) * 0.125
    return grids.scaled(step, grids.iq1_levels(levels, high >> 3))


def encode(x: Tensor) -> Tensor:
    """Bytes `[56, lanes]` of float32 `[256, lanes]`."""
    return _encoded(x, _squares(x))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    return _encoded(x, importance_weights(x, importance, scaled_squares(x, 2.0, 256)))


@stage
def _squares(x: Tensor) -> Tensor:
    return x * x


def _encoded(x: Tensor, weights: Tensor) -> Tensor:
    return torch.cat(_packed(x, weights, octets_of(x, weights, 16, LEAST, halves=True)))


@stage
def _packed(x: Tensor, weights: Tensor, found: Octets) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes of rows, of their high bits with the shifts, and of scales with d."""
    codes, d, some = scale_codes(found.scale)
    numbers = numbers_of(found) * (2 * codes + 1).to(torch.float32)
    numbers = numbers.transpose(0, 1).reshape(256, -1)
    sum_qx, sum_q2 = added(lambda v: (weights * numbers * v, weights * numbers * numbers), x)
    d = torch.where(sum_q2 > 0, sum_qx / sum_q2, d)
    half = torch.where(some, half_bits(d * 1.1125), 0)
    codes = torch.where(some, codes, 0).unflatten(0, (4, 4))
    word = codes[:, 0] | (codes[:, 1] << 3) | (codes[:, 2] << 6) | (codes[:, 3] << 9)
    nibbles = [((half >> (4 * i)) & 15) << 12 for i in range(4)]
    word = word | torch.stack(nibbles)
    rows = row_numbers(found)
    high = (rows >> 8) | (torch.where(some, found.down, 0) << 3)
    return (
        (rows & 255).transpose(0, 1).flatten(0, 1).to(torch.float32),
        (high[0] | (high[1] << 4)).to(torch.float32),
        torch.stack([word & 255, (word >> 8) & 255], dim=1).flatten(0, 1).to(torch.float32),
    )


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    octet = tl.arange(0, 32)[None, :]
    start = at[:, None]
    masked = mask[:, None]
    high = load_byte_tl(blocks, start + 32 + octet // 2, masked) >> (octet % 2 * 4)
    low = load_byte_tl(blocks, start + octet, masked)
    levels = grids.rows_of_eight_tl(table, low | ((high & 7) << 8))
    word = grids.load_word_tl(blocks, start + 48 + octet // 8 * 2, 2, masked)
    scale = (2 * ((word >> (octet // 2 % 4 * 3)) & 7) + 1).to(tl.float32)
    step = _scale_tl(blocks, at, mask)[:, None] * scale * 0.125
    return grids.scaled_tl(step, grids.iq1_levels_tl(levels, (high >> 3) & 1))


@triton.jit
def _scale_tl(blocks, at, mask):
    """float32 `[TILE]`: d, whose bits stand in four places."""
    word = tl.zeros_like(at)
    for i in tl.static_range(4):
        word = word | ((load_byte_tl(blocks, at + 49 + 2 * i, mask) >> 4) << (4 * i))
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    d = _scale_tl(blocks, at, mask)
    word = grids.load_word_tl(blocks, at + 48 + group // 2 * 2, 2, mask) >> (group % 2 * 6)
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        high = load_byte_tl(blocks, at + 32 + group * 2 + i, mask) >> (place * 4)
        index = load_byte_tl(blocks, at + group * 4 + octet, mask) | ((high & 7) << 8)
        step = d * (2 * ((word >> (3 * i)) & 7) + 1).to(tl.float32) * 0.125
        numbers = grids.octet_tl(*words2_tl(table + 2 * index, mask))
        shift = 2 * ((high >> 3) & 1)
        shifted = (numbers - shift[:, None]).to(tl.float32)
        values = values + (step[:, None] * shifted,)  # noqa: RUF005
    return values


@triton.jit
def encode_tl(x, importance, book, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`; `importance` is as x, or None."""
    TILE: tl.constexpr = x.shape[0]
    octets = octets_tl(x)
    if importance is None:
        weights = octet_squares_tl(octets)
    else:
        weights = octet_weights_tl(octets, importance, 2.0)
    entries, down, scale = octets_found_tl(octets, weights, book, 16, _LEAST)
    codes, d, some = scale_codes_tl(of_groups_tl(scale, TILE, 2))
    steps = (2 * codes + 1).to(tl.float32)
    steps = spread_tl(tl.reshape(steps, (TILE * 16,)), TILE * 16, 2)
    sums = octet_sums_tl(octets, weights, entries, lowest_tl(down), steps, 32)
    # Of the block, so in all of its lanes.
    sum_qx, sum_q2 = of_groups_tl(sums[0], TILE, 32), of_groups_tl(sums[1], TILE, 32)
    d = tl.where(sum_q2 > 0.0, tl.div_rn(sum_qx, sum_q2), d[:, None])  # [TILE, 1]
    half = tl.where(some[:, None], half_bits_tl(d * 1.1125).to(tl.int32), 0)
    codes = tl.where(some[:, None], codes, 0)
    shift = 4 * tl.arange(0, 4)[None, :]
    words = fields_tl(codes, 3, 4) | (((half >> shift) & 15) << 12)
    rows = tl.reshape(row_numbers_tl(entries), (TILE, 32))
    down = tl.where(some[:, None], tl.reshape(down, (TILE, 32)), 0)
    store_bytes_tl(out, at, rows & 255, mask)
    store_bytes_tl(out, at + 32, fields_tl((rows >> 8) | (down << 3), 4, 2), mask)
    store_words16_tl(out, at + 48, words, mask)


ROWS = (
    QuantType(
        FACTS["IQ1_M"],
        encode,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=2,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ1_S"), plain=True),
        ),
        weighted=weighted,
    ),
)
