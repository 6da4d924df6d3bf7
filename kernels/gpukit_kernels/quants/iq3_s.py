"""IQ3_S: 256 values in 110 bytes, 3.4375 bits a weight.

    bytes 0-1      d, fp16
    bytes 2-65     two an octet: the rows of the codebook of its halves, low 8 bits
    bytes 66-73    one for each 32 values: the high bits of the eight rows
    bytes 74-105   one an octet: its signs
    bytes 106-109  scale of each 32 values, 4 bits

x = ±(d * (2 * scale + 1)) * (2 * level + 1).
Source: block_iq3_s, quantize_row_iq3_s_impl and dequantize_row_iq3_s in llama.cpp's ggml-quants.c.
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
    store_halves_tl,
    store_word16_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.search.grid import GridForm, grid_codes, grid_encoded, squares
from gpukit_kernels.search.grid_triton import (
    fields_tl,
    grid_codes_tl,
    grid_encoded_tl,
    octet_squares_tl,
    octet_weights_tl,
    octets_tl,
)
from gpukit_kernels.search.neighbours import in_fours
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Nearest, Pieces, QuantType, TritonPair

GRID = partial(grids.grid, "IQ3_S")
FORM = GridForm("IQ3_S", 32, 9, 0.2, 2.0**-149, even=False, again="any")
_FORM = tl.constexpr(FORM.constants)
OCTETS = partial(grids.row_bytes, "IQ3_S", 4, grids.odd_numbers)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[110, lanes]`."""
    high = grids.fields(blocks[66:74], 1, 8).to(torch.int32)
    index = blocks[2:66].to(torch.int32) | (high << 8)
    levels = grids.odd_numbers(grids.rows(GRID(blocks.device), index, 4))
    scales = grids.fields(blocks[106:], 4, 2)
    step = half_value(blocks, 0) * (2 * scales + 1).to(torch.float32)
    return grids.scaled(step, grids.signed(levels, blocks[74:106]))


def encode(x: Tensor) -> Tensor:
    """Bytes `[110, lanes]` of float32 `[256, lanes]`."""
    return _block(*grid_encoded(x, squares(x), FORM))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256))
    return _block(*grid_encoded(x, weights, FORM))


@stage
def _block(scale: Tensor, rows: Tensor, signs: Tensor, top: Tensor) -> Tensor:
    d, code, _ = grid_codes(scale, 1.033)
    low, signs = _moved(rows & 255, top), _moved(signs, top)
    parts = [low, packed_fields(rows >> 8, 1), signs, packed_fields(code, 4)]
    return torch.cat([word_bytes(d, 2), *[part.to(torch.float32) for part in parts]])


def _moved(parts: Tensor, top: Tensor) -> Tensor:
    """int32 `[n, lanes]`: the parts of the groups that are not zero, one after the other, then 0.

    llama.cpp leaves no room for a group of zeros, but for the high bits of its rows: the groups
    behind it are read in its place, wrongly. The bytes are its own all the same.
    """
    groups = parts.view(8, -1, parts.shape[-1])
    some = (top != 0).to(torch.int32)
    nothing = torch.zeros_like(groups[0])
    found = [torch.where(some[0] != 0, groups[0], nothing), *[nothing] * 7]
    place = some[0]
    for g in range(1, 8):
        for to in range(g + 1):
            here = (place == to) & (some[g] != 0)
            found[to] = torch.where(here, groups[g], found[to])
        place = place + some[g]
    return torch.cat(found)


@triton.jit
def decode_tl(blocks, at, mask, table):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    octet = tl.arange(0, 32)[None, :]
    start = at[:, None]
    masked = mask[:, None]
    group = tl.arange(0, 8)[None, :]
    high = load_byte_tl(blocks, start + 66 + octet // 4, masked) >> (octet % 4 * 2)
    low = grids.load_word_tl(blocks, start + 2 + 2 * octet, 2, masked)
    first = (low & 255) | ((high & 1) << 8)
    second = (low >> 8) | ((high & 2) << 7)
    levels = 2 * grids.rows_of_four_tl(table, first, second) + 1
    signs = load_byte_tl(blocks, start + 74 + octet, masked)
    scales = load_byte_tl(blocks, start + 106 + group // 2, masked)
    scale = 2 * ((scales >> (group % 2 * 4)) & 15) + 1
    step = load_half_tl(blocks, at, mask)[:, None] * scale.to(tl.float32)  # [TILE, 8]
    # A sign goes to the sign's place at once: of integers it would take registers.
    sign = (signs[:, :, None] << (31 - tl.arange(0, 8))[None, None, :]) & -2147483648
    numbers = levels.to(tl.float32).to(tl.int32, bitcast=True) ^ sign
    numbers = tl.reshape(numbers.to(tl.float32, bitcast=True), (at.shape[0], 8, 32))
    return tl.reshape(step[:, :, None] * numbers, (at.shape[0], 256))


@triton.jit
def pieces_tl(blocks, table, at, part, mask):
    """Values of octets `part` % 2 and that + 2 of the group of 32 number `part` // 2."""
    group, place = part // 2, part % 2
    high = load_byte_tl(blocks, at + 66 + group, mask) >> (2 * place)
    scale = (load_byte_tl(blocks, at + 106 + group // 2, mask) >> (group % 2 * 4)) & 15
    step = load_half_tl(blocks, at, mask) * (2 * scale + 1).to(tl.float32)
    values = ()
    for i in tl.static_range(2):
        octet = place + 2 * i
        start = at + 2 + group * 8 + octet * 2
        bits = high >> (4 * i)
        first = load_byte_tl(blocks, start, mask) | ((bits & 1) << 8)
        second = load_byte_tl(blocks, start + 1, mask) | ((bits & 2) << 7)
        signs = load_byte_tl(blocks, at + 74 + group * 4 + octet, mask)
        numbers = grids.octet_tl(tl.load(table + first), tl.load(table + second))
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
    scale, rows, signs, top = grid_encoded_tl(octets, weights, book, _FORM)
    d, code, _ = grid_codes_tl(scale, 1.033)
    store_word16_tl(out, at, d, mask)
    # Eight low bytes a group are two words, its signs another.
    low = tl.reshape(fields_tl(rows & 255, 8, 4), (x.shape[0], 8, 2))
    first, second = tl.split(low)
    moved = tl.join(_moved_tl(first, top), _moved_tl(second, top))
    store_halves_tl(out, at + 2, tl.reshape(moved, (x.shape[0], 16)), mask)
    store_bytes_tl(out, at + 66, fields_tl(rows >> 8, 1, 8), mask)
    store_halves_tl(out, at + 74, _moved_tl(fields_tl(signs, 8, 4), top), mask)
    store_bytes_tl(out, at + 106, fields_tl(code, 4, 2), mask)


@triton.jit
def _moved_tl(words, top):
    """int32 `[TILE, 8]`: _moved of a word a group."""
    to, group = tl.arange(0, 8)[None, :, None], tl.arange(0, 8)[None, None, :]
    some = (top != 0.0).to(tl.int32)[:, None, :]
    # How many groups before each, which are not zero, there are: [TILE, group, before].
    place = tl.sum(tl.where(group < to, some, 0), axis=2)[:, None, :]
    return tl.sum(tl.where((place == to) & (some != 0), words[:, None, :], 0), axis=2)


ROWS = (
    QuantType(
        FACTS["IQ3_S"],
        encode,
        decode,
        TritonPair(
            None,
            decode_tl,
            tile=1,
            table=GRID,
            pieces=Pieces(pieces_tl, 16, 2, OCTETS),
            nearest=Nearest(encode_tl, partial(in_fours, "IQ3_S"), plain=True),
        ),
        weighted=weighted,
    ),
)
