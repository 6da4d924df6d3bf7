"""IQ2_XXS: 256 values in 66 bytes, 2.0625 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-65   eight for each 32 values: four with the rows of the codebook, one an octet; a word
                 with the octets' signs, 7 bits each (grids.eight_signs), and on top the scale

x = ±(d * (scale + 1/2) / 4) * magnitude.
Source: block_iq2_xxs, quantize_row_iq2_xxs_impl and dequantize_row_iq2_xxs in llama.cpp's
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
    store_halves_tl,
    store_word16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.pieces_triton import words2_tl
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.search.grid import (
    GridForm,
    grid_codes,
    grid_ended,
    grid_search,
    grid_values,
    signs_and_code,
)
from gpukit_kernels.search.grid_triton import (
    fields_tl,
    grid_codes_tl,
    grid_ended_tl,
    grid_search_tl,
    octet_signs_tl,
    octet_weights_tl,
    octets_tl,
    signs_and_code_tl,
)
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.search.positive import positive_search
from gpukit_kernels.search.positive_triton import positive_scale_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

GRID = partial(grids.grid, "IQ2_XXS")
FORM = GridForm("IQ2_XXS", 32, 6, 0.1, 2.0**-149, even=True, again="all")
_FORM = tl.constexpr(FORM.constants)
OCTETS = partial(grids.row_bytes, "IQ2_XXS", 8, grids.iq2_magnitudes)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[66, lanes]`."""
    groups = blocks[2:].view(8, 8, -1)
    index = groups[:, :4].reshape(32, -1).to(torch.int32)
    word = grids.words(groups[:, 4:].reshape(32, -1), 4)
    signs = grids.eight_signs(grids.fields(word, 7, 4))
    levels = grids.iq2_magnitudes(grids.rows(GRID(blocks.device), index, 8))
    step = grids.iq2_steps(half_value(blocks, 0), (word >> 28) & 15)
    return grids.scaled(step, grids.signed(levels, signs))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """Bytes `[66, lanes]` of float32 `[256, lanes]` with float32 `importance` `[256, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 1.0, 256))
    values, signs = grid_values(x, weights, even=FORM.even)
    groups, counts = (part.view(8, 32, -1).transpose(0, 1) for part in (values.x, weights))
    # The candidates begin at what the best scale of levels 0 to 4 makes of 3.
    _, scale = positive_search(groups, counts, 4)
    top = _top(scale)
    best = grid_search(values, top, scale, FORM)
    return _block(*grid_ended(best, signs, top, FORM))


@stage
def _top(scale: Tensor) -> Tensor:
    return scale * 3.0


@stage
def _block(scale: Tensor, rows: Tensor, signs: Tensor) -> Tensor:
    d, code, some = grid_codes(scale, 1.0)
    words = signs_and_code(signs, code)
    groups = torch.cat([rows.view(8, 4, -1), words], dim=1).flatten(0, 1)
    # Where no scale is left nothing else is.
    groups = torch.where(some, groups, torch.zeros_like(groups))
    return torch.cat([word_bytes(d, 2), groups.to(torch.float32)])


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    octet = tl.arange(0, 32)[None, :]
    group = at[:, None] + 2 + octet // 4 * 8
    index = load_byte_tl(blocks, group + octet % 4, mask[:, None])
    word = grids.load_word_tl(blocks, group + 4, 4, mask[:, None])
    signs = grids.eight_signs_tl((word >> (octet % 4 * 7)) & 127)
    levels = grids.iq2_magnitudes_tl(grids.rows_of_eight_tl(table, index))
    step = grids.iq2_steps_tl(load_half_tl(blocks, at, mask), (word >> 28) & 15)
    return grids.scaled_tl(step, grids.signed_tl(levels, signs))


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    start = at + 2 + group * 8
    word = grids.load_word_tl(blocks, start + 4, 4, mask)
    step = load_half_tl(blocks, at, mask) * (((word >> 28) & 15).to(tl.float32) + 0.5) * 0.25
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        index = load_byte_tl(blocks, start + octet, mask)
        numbers = grids.octet_tl(*words2_tl(table + 2 * index, mask))
        signs = grids.eight_signs_tl((word >> (octet * 7)) & 127)
        values = values + (step[:, None] * grids.signed_octet_tl(numbers, signs),)  # noqa: RUF005
    return values


@triton.jit
def encode_tl(x, importance, book, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`; `importance` is as x."""
    TILE: tl.constexpr = x.shape[0]
    x = octets_tl(x)
    weights = octet_weights_tl(x, importance, 1.0)
    x, signs = octet_signs_tl(x, weights, _FORM[5])
    scale = positive_scale_tl(x, weights, 4, 4)
    top = scale * 3.0
    scale, entries = grid_search_tl(x, weights, top, scale, book, _FORM)
    scale, rows, signs, _ = grid_ended_tl(scale, entries, signs, top, _FORM)
    d, code, some = grid_codes_tl(scale, 1.0)
    store_word16_tl(out, at, d, mask)
    words = tl.join(fields_tl(rows, 8, 4), signs_and_code_tl(signs, code))
    words = tl.where(some[:, None], tl.reshape(words, (TILE, 16)), 0)
    store_halves_tl(out, at + 2, words, mask)


ROWS = (
    QuantType(
        FACTS["IQ2_XXS"],
        None,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=1,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ2_XXS"), plain=False),
        ),
        weighted=weighted,
    ),
)
