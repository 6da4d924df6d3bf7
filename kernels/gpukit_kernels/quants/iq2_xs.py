"""IQ2_XS: 256 values in 74 bytes, 2.3125 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-65   two an octet: its row of the codebook, 9 bits, its signs, 7 bits
                 (grids.eight_signs)
    bytes 66-73  scale of each 16 values, 4 bits

x = ±(d * (scale + 1/2) / 4) * magnitude.
Source: block_iq2_xs, quantize_row_iq2_xs_impl and dequantize_row_iq2_xs in llama.cpp's
ggml-quants.c.
"""

from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import grids
from gpukit_kernels.bits import half_value, packed_fields, word_bytes
from gpukit_kernels.bits_triton import (
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
from gpukit_kernels.search.grid import GridForm, grid_codes, grid_encoded
from gpukit_kernels.search.grid_triton import (
    fields_tl,
    grid_codes_tl,
    grid_encoded_tl,
    octet_weights_tl,
    octets_tl,
)
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

GRID = partial(grids.grid, "IQ2_XS")
FORM = GridForm("IQ2_XS", 16, 9, 0.1, 1e-15, even=True, again="off")
_FORM = tl.constexpr(FORM.constants)
OCTETS = partial(grids.row_bytes, "IQ2_XS", 8, grids.iq2_magnitudes)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[74, lanes]`."""
    word = grids.words(blocks[2:66], 2)
    levels = grids.iq2_magnitudes(grids.rows(GRID(blocks.device), word & 511, 8))
    step = grids.iq2_steps(half_value(blocks, 0), grids.fields(blocks[66:], 4, 2))
    return grids.scaled(step, grids.signed(levels, grids.eight_signs(word >> 9)))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """Bytes `[74, lanes]` of float32 `[256, lanes]` with float32 `importance` `[256, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 1.0, 256))
    return _block(*grid_encoded(x, weights, FORM))


@stage
def _block(scale: Tensor, rows: Tensor, signs: Tensor, _: Tensor) -> Tensor:
    d, code, some = grid_codes(scale, 1.0)
    # Where no scale is left nothing else is.
    words = torch.where(some, rows | ((signs & 127) << 9), torch.zeros_like(rows))
    pairs = torch.stack([words & 255, words >> 8], dim=1).flatten(0, 1)
    parts = [pairs, packed_fields(code, 4)]
    return torch.cat([word_bytes(d, 2), *[part.to(torch.float32) for part in parts]])


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    octet = tl.arange(0, 32)[None, :]
    start = at[:, None]
    word = grids.load_word_tl(blocks, start + 2 + 2 * octet, 2, mask[:, None])
    levels = grids.iq2_magnitudes_tl(grids.rows_of_eight_tl(table, word & 511))
    scales = load_byte_tl(blocks, start + 66 + octet // 4, mask[:, None])
    step = grids.iq2_steps_tl(load_half_tl(blocks, at, mask), (scales >> (octet // 2 % 2 * 4)) & 15)
    return grids.scaled_tl(step, grids.signed_tl(levels, grids.eight_signs_tl(word >> 9)))


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    scales = load_byte_tl(blocks, at + 66 + group, mask)
    d = load_half_tl(blocks, at, mask)
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        word = grids.load_word_tl(blocks, at + 2 + group * 8 + 2 * octet, 2, mask)
        step = d * (((scales >> (4 * i)) & 15).to(tl.float32) + 0.5) * 0.25
        numbers = grids.octet_tl(*words2_tl(table + 2 * (word & 511), mask))
        signs = grids.eight_signs_tl(word >> 9)
        values = values + (step[:, None] * grids.signed_octet_tl(numbers, signs),)  # noqa: RUF005
    return values


@triton.jit
def encode_tl(x, importance, book, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`; `importance` is as x."""
    octets = octets_tl(x)
    weights = octet_weights_tl(octets, importance, 1.0)
    scale, rows, signs, _ = grid_encoded_tl(octets, weights, book, _FORM)
    d, code, some = grid_codes_tl(scale, 1.0)
    store_word16_tl(out, at, d, mask)
    words = tl.where(some[:, None], rows | ((signs & 127) << 9), 0)
    store_words16_tl(out, at + 2, words, mask)
    store_bytes_tl(out, at + 66, fields_tl(code, 4, 2), mask)


ROWS = (
    QuantType(
        FACTS["IQ2_XS"],
        None,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=1,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ2_XS"), plain=False),
            row_warps=8,  # with four Triton 3.9.0 spills two registers on sm_90
        ),
        weighted=weighted,
    ),
)
