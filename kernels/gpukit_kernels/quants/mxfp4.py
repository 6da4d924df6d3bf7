"""MXFP4: 32 values in 17 bytes, 4.25 bits a weight; E2M1 numbers under a power of two.

    byte 0      e, the exponent of the scale with a bias of 127 (E8M0)
    bytes 1-16  byte j: number j low, number j + 16 high; its sign is the fourth bit

x = E2M1[magnitude] * 2^(e - 128), negative where the sign is set; the numbers are doubled.
Source: block_mxfp4, quantize_row_mxfp4_ref in llama.cpp's ggml-quants.c; the format is that of the
OCP Microscaling Formats specification, version 1.0.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_codebook_triton
from gpukit_kernels.bits import pack_nibbles, unpack_nibbles
from gpukit_kernels.bits_triton import load_byte_tl, load_nibbles_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_lanes_tl, nibble_lanes_tl, rows_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.codebook_triton import codebook_pair_tl
from gpukit_kernels.search.common_triton import lanes_range_tl
from gpukit_kernels.search.e2m1 import e2m1_values, nearest_e2m1
from gpukit_kernels.search.e2m1_triton import (
    E2M1_ASSEMBLY,
    E2M1_WORDS,
    e2m1_values_tl,
    nearest_e2m1_tl,
    tried_e2m1_tl,
)
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair

# How far from 1 a power of two lies, at the least, and how many more floats below it log2f rounds.
ROUNDED = ((2, 1), (4, 1), (8, 3), (16, 6), (32, 11), (64, 22), (128, 44))

_ROUNDED = tl.constexpr(ROUNDED)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[17, lanes]`."""
    level = unpack_nibbles(blocks[1:]).to(torch.int32)
    return e2m1_values(level) * _scale(blocks[0].to(torch.int32))


def encode(x: Tensor) -> Tensor:
    """Bytes `[17, lanes]` of float32 `[32, lanes]`."""
    e, scale = _shared(x)
    return torch.cat([e, _packed(_levels(x, scale))])


@stage
def _shared(x: Tensor) -> tuple[Tensor, Tensor]:
    """The exponent's byte, `[1, lanes]`, and half of what it stands for, `[lanes]`."""
    largest = torch.zeros_like(x[0])
    for row in x:
        magnitude = row.abs()
        largest = torch.where(largest < magnitude, magnitude, largest)
    e = _exponent(largest)
    return e.to(torch.float32)[None], _scale(e)


@stage
def _levels(x: Tensor, scale: Tensor) -> Tensor:
    return nearest_e2m1(x, scale)


@stage
def _packed(levels: Tensor) -> Tensor:
    return pack_nibbles(levels.to(torch.int32))


def _exponent(largest: Tensor) -> Tensor:
    """int32 0..255: the C's (uint8) (floorf(log2f(largest)) - 2 + 127), 0 for 0 and infinity.

    log2f rounds, so it reaches the next whole number for some floats below a power of two: below
    2^k those nearer than ln 2 / 2^24 times the power of two below |k|.
    """
    tiny = largest < 2.0**-126
    bits = torch.where(tiny, largest * 2.0**24, largest).view(torch.int32)
    power = (bits >> 23) - 127 - 24 * tiny.to(torch.int32)
    above = power + 1
    distance = torch.where(above > 0, above - 1, -above)
    near = torch.zeros_like(distance)
    for least, more in ROUNDED:
        near = near + more * (distance >= least).to(torch.int32)
    power = power + (0x800000 - (bits & 0x7FFFFF) <= near).to(torch.int32)
    e = (power + 125) & 0xFF
    return torch.where((largest > 0) & (largest < float("inf")), e, torch.zeros_like(e))


def _scale(e: Tensor) -> Tensor:
    """float32: 2^(e - 128) of int32 0..255; below e = 2 it is subnormal."""
    subnormal = torch.bitwise_left_shift(torch.full_like(e, 0x200000), e.clamp(max=1))
    return torch.where(e < 2, subnormal, (e - 1) << 23).view(torch.float32)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    number = e2m1_values_tl(load_nibbles_tl(blocks, at + 1, mask))
    return number * _scale_tl(load_byte_tl(blocks, at, mask))[:, None]


@triton.jit
def encode_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`."""
    largest, _ = lanes_range_tl(x, 32)
    e = _exponent_tl(tl.abs(largest))
    scale = _scale_tl(e)
    # Beside an infinity errors round until numbers seem as near as others.
    if tl.max(tl.abs(largest), axis=0) == float("inf"):
        words = _tried_words_tl(x, scale)
    else:
        words = _words_tl(x, scale)
    tl.store(out + at, e.to(tl.uint8), mask=mask)
    place = at[:, None] + 1 + tl.arange(0, 16)[None, :]
    low = rows_tl(words, 4)
    low = tl.join(low, low >> 16)
    packed = tl.reshape(tl.join(low, low >> 8), (at.shape[0], 16))
    tl.store(out + place, packed.to(tl.uint8), mask=mask[:, None])


@triton.jit
def _words_tl(x, scale):
    """A tuple of four int32 lanes: the levels of a tuple of 32, packed."""
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (nearest_e2m1_tl(x[i], scale),)  # noqa: RUF005
    return nibble_lanes_tl(byte_lanes_tl(levels, 8))


@triton.jit
def _tried_words_tl(x, scale):
    """`_words_tl` by `tried_e2m1_tl`."""
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (tried_e2m1_tl(x[i], scale),)  # noqa: RUF005
    return nibble_lanes_tl(byte_lanes_tl(levels, 8))


@triton.jit
def _exponent_tl(largest):
    """int32 0..255: `_exponent`."""
    tiny = largest < 1.1754943508222875e-38
    bits = tl.where(tiny, largest * 16777216.0, largest).to(tl.int32, bitcast=True)
    power = (bits >> 23) - tl.where(tiny, 151, 127)
    above = power + 1
    distance = tl.where(above > 0, above - 1, -above)
    near = tl.zeros_like(distance)
    for i in tl.static_range(7):
        near = near + tl.where(distance >= _ROUNDED[i][0], _ROUNDED[i][1], 0)
    power = power + tl.where(0x800000 - (bits & 0x7FFFFF) <= near, 1, 0)
    return tl.where((largest > 0.0) & (largest < float("inf")), (power + 125) & 0xFF, 0)


@triton.jit
def _scale_tl(e):
    """float32: `_scale` of int32 0..255."""
    subnormal = tl.where(e == 0, 0x200000, 0x400000)
    return tl.where(e < 2, subnormal, (e - 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    byte = load_eight_tl(blocks, at + 1 + part * 8, mask)
    low, high = codebook_pair_tl(byte, E2M1_WORDS, E2M1_ASSEMBLY)
    scale = _scale_tl(load_byte_tl(blocks, at, mask))[:, None]
    return low * scale, high * scale


ROWS = (
    QuantType(
        FACTS["MXFP4"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            pieces=Pieces(pieces_tl, 16, 2),
            tile=128,
            lanes=True,
            vectors=parts_codebook_triton.MXFP4,
        ),
    ),
)
