"""IQ3_XXS: 256 values in 98 bytes, 3.0625 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-65   two an octet: the rows of the codebook of its halves
    bytes 66-97  a word for each 32 values: the octets' signs, 7 bits each (grids.eight_signs), and
                 on top the scale, 4 bits

x = ±(d * (scale + 1/2) / 2) * magnitude, magnitudes 4, 12, 20, 28, 36, 44, 52, 62.
Source: block_iq3_xxs, quantize_row_iq3_xxs_impl and dequantize_row_iq3_xxs in llama.cpp's
ggml-quants.c.
"""

from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import grids
from gpukit_kernels.bits import half_value, word_bytes
from gpukit_kernels.bits_triton import (
    load_byte_tl,
    load_half_tl,
    store_bytes_tl,
    store_halves_tl,
    store_word16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.search.grid import GridForm, grid_codes, grid_encoded, signs_and_code, squares
from gpukit_kernels.search.grid_triton import (
    grid_codes_tl,
    grid_encoded_tl,
    octet_squares_tl,
    octet_weights_tl,
    octets_tl,
    signs_and_code_tl,
)
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

GRID = partial(grids.grid, "IQ3_XXS")
FORM = GridForm("IQ3_XXS", 32, 15, 0.2, 1e-8, even=True, again="off")
_FORM = tl.constexpr(FORM.constants)
OCTETS = partial(grids.row_bytes, "IQ3_XXS", 4, grids.iq3_xxs_magnitudes)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[98, lanes]`."""
    levels = grids.rows(GRID(blocks.device), blocks[2:66].to(torch.int32), 4)
    levels = grids.iq3_xxs_magnitudes(levels)
    word = grids.words(blocks[66:], 4)
    signs = grids.eight_signs(grids.fields(word, 7, 4))
    step = half_value(blocks, 0) * (((word >> 28) & 15).to(torch.float32) + 0.5) * 0.5
    return grids.scaled(step, grids.signed(levels, signs))


def encode(x: Tensor) -> Tensor:
    """Bytes `[98, lanes]` of float32 `[256, lanes]`."""
    return _block(*grid_encoded(x, squares(x), FORM))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256))
    return _block(*grid_encoded(x, weights, FORM))


@stage
def _block(scale: Tensor, rows: Tensor, signs: Tensor, _: Tensor) -> Tensor:
    d, code, some = grid_codes(scale, 1.0125)
    parts = torch.cat([rows, signs_and_code(signs, code).flatten(0, 1)])
    # Where no scale is left nothing else is.
    parts = torch.where(some, parts, torch.zeros_like(parts))
    return torch.cat([word_bytes(d, 2), parts.to(torch.float32)])


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    octet = tl.arange(0, 32)[None, :]
    start = at[:, None]
    masked = mask[:, None]
    first = load_byte_tl(blocks, start + 2 + 2 * octet, masked)
    second = load_byte_tl(blocks, start + 3 + 2 * octet, masked)
    levels = grids.rows_of_four_tl(table, first, second)
    levels = 4 + 8 * levels + 2 * ((levels + 1) >> 3)
    word = grids.load_word_tl(blocks, start + 66 + octet // 4 * 4, 4, masked)
    signs = grids.eight_signs_tl((word >> (octet % 4 * 7)) & 127)
    scale = ((word >> 28) & 15).to(tl.float32)
    step = load_half_tl(blocks, at, mask)[:, None] * (scale + 0.5) * 0.5
    return grids.scaled_tl(step, grids.signed_tl(levels, signs))


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    word = grids.load_word_tl(blocks, at + 66 + group * 4, 4, mask)
    step = load_half_tl(blocks, at, mask) * (((word >> 28) & 15).to(tl.float32) + 0.5) * 0.5
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        start = at + 2 + group * 8 + octet * 2
        first = tl.load(table + load_byte_tl(blocks, start, mask))
        second = tl.load(table + load_byte_tl(blocks, start + 1, mask))
        numbers = grids.octet_tl(first, second)
        signs = grids.eight_signs_tl((word >> (octet * 7)) & 127)
        values = values + (step[:, None] * grids.signed_octet_tl(numbers, signs),)  # noqa: RUF005
    return values


@triton.jit
def encode_tl(x, importance, book, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`; `importance` is as x, or None."""
    octets = octets_tl(x)
    if importance is None:
        weights = octet_squares_tl(octets)
    else:
        weights = octet_weights_tl(octets, importance, 2.0)
    scale, rows, signs, _ = grid_encoded_tl(octets, weights, book, _FORM)
    d, code, some = grid_codes_tl(scale, 1.0125)
    store_word16_tl(out, at, d, mask)
    store_bytes_tl(out, at + 2, tl.where(some[:, None], rows, 0), mask)
    words = tl.where(some[:, None], signs_and_code_tl(signs, code), 0)
    store_halves_tl(out, at + 66, words, mask)


ROWS = (
    QuantType(
        FACTS["IQ3_XXS"],
        encode,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=1,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ3_XXS"), plain=True),
        ),
        weighted=weighted,
    ),
)
