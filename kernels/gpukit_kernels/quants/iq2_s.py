"""IQ2_S: 256 values in 82 bytes, 2.5625 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-33   one an octet: its row of the codebook, low 8 bits
    bytes 34-65  one an octet: its signs
    bytes 66-73  one for each 32 values: the two high bits of the four rows
    bytes 74-81  scale of each 16 values, 4 bits

x = ±(d * (scale + 1/2) / 4) * magnitude.
Source: block_iq2_s, quantize_row_iq2_s_impl and dequantize_row_iq2_s in llama.cpp's ggml-quants.c.
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
    octet_variance_tl,
    octet_weights_tl,
    octets_tl,
)
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

GRID = partial(grids.grid, "IQ2_S")
FORM = GridForm("IQ2_S", 16, 9, 0.1, 1e-8, even=False, again="off")
_FORM = tl.constexpr(FORM.constants)
OCTETS = partial(grids.row_bytes, "IQ2_S", 8, grids.iq2_magnitudes)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[82, lanes]`."""
    high = grids.fields(blocks[66:74], 2, 4).to(torch.int32)
    index = blocks[2:34].to(torch.int32) | (high << 8)
    levels = grids.iq2_magnitudes(grids.rows(GRID(blocks.device), index, 8))
    step = grids.iq2_steps(half_value(blocks, 0), grids.fields(blocks[74:], 4, 2))
    return grids.scaled(step, grids.signed(levels, blocks[34:66]))


def encode(x: Tensor) -> Tensor:
    """Bytes `[82, lanes]` of float32 `[256, lanes]`."""
    return _block(*grid_encoded(x, _counts(x, scaled_squares(x, 2.0, 256)), FORM))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256))
    return _block(*grid_encoded(x, weights, FORM))


@stage
def _counts(x: Tensor, variance: Tensor) -> Tensor:
    """What values count where no importance is given."""
    return 0.25 * variance + x * x


@stage
def _block(scale: Tensor, rows: Tensor, signs: Tensor, _: Tensor) -> Tensor:
    d, code, _ = grid_codes(scale, 0.9875)
    parts = [rows & 255, signs, packed_fields(rows >> 8, 2), packed_fields(code, 4)]
    return torch.cat([word_bytes(d, 2), *[part.to(torch.float32) for part in parts]])


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    octet = tl.arange(0, 32)[None, :]
    start = at[:, None]
    masked = mask[:, None]
    high = load_byte_tl(blocks, start + 66 + octet // 4, masked) >> (octet % 4 * 2)
    index = load_byte_tl(blocks, start + 2 + octet, masked) | ((high & 3) << 8)
    levels = grids.iq2_magnitudes_tl(grids.rows_of_eight_tl(table, index))
    scales = load_byte_tl(blocks, start + 74 + octet // 4, masked)
    step = grids.iq2_steps_tl(load_half_tl(blocks, at, mask), (scales >> (octet // 2 % 2 * 4)) & 15)
    signs = load_byte_tl(blocks, start + 34 + octet, masked)
    return grids.scaled_tl(step, grids.signed_tl(levels, signs))


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    high = load_byte_tl(blocks, at + 66 + group, mask) >> (2 * place)
    scales = load_byte_tl(blocks, at + 74 + group, mask)
    d = load_half_tl(blocks, at, mask)
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        start = at + group * 4 + octet
        index = load_byte_tl(blocks, start + 2, mask) | (((high >> (4 * i)) & 3) << 8)
        step = d * (((scales >> (4 * i)) & 15).to(tl.float32) + 0.5) * 0.25
        numbers = grids.octet_tl(*words2_tl(table + 2 * index, mask))
        signs = load_byte_tl(blocks, start + 34, mask)
        values = values + (step[:, None] * grids.signed_octet_tl(numbers, signs),)  # noqa: RUF005
    return values


@triton.jit
def encode_tl(x, importance, book, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`; `importance` is as x, or None."""
    octets = octets_tl(x)
    weights = _weights_tl(octets, importance)
    scale, rows, signs, _ = grid_encoded_tl(octets, weights, book, _FORM)
    d, code, _ = grid_codes_tl(scale, 0.9875)
    store_word16_tl(out, at, d, mask)
    store_bytes_tl(out, at + 2, rows & 255, mask)
    store_bytes_tl(out, at + 34, signs, mask)
    store_bytes_tl(out, at + 66, fields_tl(rows >> 8, 2, 4), mask)
    store_bytes_tl(out, at + 74, fields_tl(code, 4, 2), mask)


@triton.jit
def _weights_tl(octets, importance):
    """A tuple of eight: what values count."""
    if importance is not None:
        return octet_weights_tl(octets, importance, 2.0)
    variance = octet_variance_tl(octets, 2.0)
    found = ()
    for k in tl.static_range(8):
        found = found + (0.25 * variance + octets[k] * octets[k],)  # noqa: RUF005
    return found


ROWS = (
    QuantType(
        FACTS["IQ2_S"],
        encode,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=1,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ2_S"), plain=True),
        ),
        weighted=weighted,
    ),
)
