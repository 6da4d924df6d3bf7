"""IQ2_XXS: 256 values in 66 bytes, 2.0625 bits a weight; read only.

    bytes 0-1    d, fp16
    bytes 2-65   eight for each 32 values: four with the rows of the codebook, one an octet; a word
                 with the octets' signs, 7 bits each (grids.eight_signs), and on top the scale

x = ±(d * (scale + 1/2) / 4) * magnitude.
Source: block_iq2_xxs, dequantize_row_iq2_xxs in llama.cpp's ggml-quants.c.
"""

from functools import partial

import torch
from torch import Tensor

from gpukit_kernels import grids
from gpukit_kernels.bits import half_value
from gpukit_kernels.bits_triton import load_byte_tl, load_half_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.pieces_triton import words2_tl
from gpukit_kernels.table import Pieces, QuantType, TritonPair

GRID = partial(grids.grid, "IQ2_XXS")
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


ROWS = (
    QuantType(
        FACTS["IQ2_XXS"],
        None,
        decode,
        TritonPair(None, decode_tl, table=GRID, pieces=Pieces(pieces_tl, 16, 2, OCTETS)),
    ),
)
