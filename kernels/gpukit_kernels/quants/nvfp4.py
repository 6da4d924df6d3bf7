"""NVFP4: 64 values in 36 bytes, 4.5 bits a weight; four sixteens of E2M1 numbers under a scale.

    bytes 0-3    the scale of each sixteen, an E4M3 number without a sign
    bytes 4-35   eight a sixteen, byte j: number j low, j + 8 high; its sign is the fourth bit

x = E2M1[magnitude] * (scale / 2), negative where the sign is set; the numbers are doubled. A file
may have one more factor for the whole tensor beside it, which is no part of the blocks.
Source: block_nvfp4, quantize_row_nvfp4_ref in llama.cpp's ggml-quants.c, ggml_fp32_to_ue4m3 and
ggml_ue4m3_to_fp32 in ggml-impl.h.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_codebook_triton
from gpukit_kernels.bits_triton import load_byte_tl, store_words32_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_lanes_tl, lanes_tl
from gpukit_kernels.parts_codebook_triton import half_e4m3_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.codebook_triton import codebook_pair_tl
from gpukit_kernels.search.common_triton import lanes_range_tl
from gpukit_kernels.search.e2m1 import E2M1, e2m1_values, nearest_e2m1
from gpukit_kernels.search.e2m1_triton import (
    E2M1_ASSEMBLY,
    E2M1_WORDS,
    e2m1_values_tl,
    nearest_e2m1_tl,
    tried_e2m1_tl,
)
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair

# The largest number, which the largest value becomes, undoubled; the largest scale's byte.
TOP, LARGEST = E2M1[-1] / 2, 0x7E
# The first byte of the exponent that scales do not have, and what it stands for.
BEYOND, LEAST_BEYOND = 0x78, 256.0
# Up to here errors are exact enough: some levels of the largest scale remain apart.
EXACT = 2.0**20

_TOP, _LARGEST = tl.constexpr(TOP), tl.constexpr(LARGEST)
_LEAST_BEYOND, _EXACT = tl.constexpr(LEAST_BEYOND), tl.constexpr(EXACT)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[64, lanes]` of uint8 `[36, lanes]`."""
    packed = blocks[4:].view(4, 8, -1)
    level = torch.cat([packed & 15, packed >> 4], dim=1).to(torch.int32)
    step = _half_scale(blocks[:4].to(torch.int32))
    return (e2m1_values(level) * step[:, None]).view(64, -1)


def encode(x: Tensor) -> Tensor:
    """Bytes `[36, lanes]` of float32 `[64, lanes]`."""
    groups = x.view(4, 16, -1)
    scale, step = _scales(groups.transpose(0, 1))
    return torch.cat([scale, _packed(_levels(groups, step))])


@stage
def _scales(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes of the scales of `[16, 4, lanes]`, and half of what they stand for."""
    largest = torch.zeros_like(groups[0])
    for row in groups:
        magnitude = row.abs()
        largest = torch.where(largest < magnitude, magnitude, largest)
    byte = _scale_byte(largest / torch.full_like(largest, TOP))
    return byte.to(torch.float32), _half_scale(byte)


@stage
def _levels(groups: Tensor, step: Tensor) -> Tensor:
    return nearest_e2m1(groups, step[:, None])


@stage
def _packed(levels: Tensor) -> Tensor:
    level = levels.to(torch.int32)
    return (level[:, :8] | (level[:, 8:] << 4)).view(32, -1).to(torch.float32)


def _scale_byte(v: Tensor) -> Tensor:
    """int32 0..126: the E4M3 number nearest to float32 `v`, not less than zero, halves rounded up;
    the largest from 256 on, and of the subnormal ones seven eighths of the least normal at most."""
    normal = ((v.view(torch.int32) + 0x80000) >> 20) - (120 << 3)
    normal = torch.where(normal >= BEYOND, LARGEST, normal)
    normal = torch.where(v < LEAST_BEYOND, normal, LARGEST)
    # 0 where v is large, and what it gives is not looked at.
    small = torch.where(v < 2.0**-6, v * 512.0 + 0.5, 0.0).to(torch.int32).clamp(max=7)
    return torch.where(v < 2.0**-6, small, normal)


def _half_scale(byte: Tensor) -> Tensor:
    """float32: half of what int32 0..255 stands for; 0 for NaN's 0x7F; the sign does not count."""
    exponent, fraction = (byte >> 3) & 15, byte & 7
    normal = (((exponent + 119) << 23) | (fraction << 20)).view(torch.float32)
    half = torch.where(exponent == 0, fraction.to(torch.float32) * 2.0**-10, normal)
    return torch.where(byte == 0x7F, 0.0, half)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 64]` of the blocks at byte offsets `at`."""
    group = tl.arange(0, 4)
    step = half_e4m3_tl(load_byte_tl(blocks, at[:, None] + group[None, :], mask[:, None]))
    place = at[:, None, None] + 4 + group[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    byte = load_byte_tl(blocks, place, mask[:, None, None])
    low = step[:, :, None] * e2m1_values_tl(byte & 15)
    high = step[:, :, None] * e2m1_values_tl(byte >> 4)
    values = tl.permute(tl.join(low, high), (0, 1, 3, 2))  # [TILE, 4, 2, 8]
    return tl.reshape(values, (at.shape[0], 64))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 64]` as blocks at byte offsets `at`."""
    TILE: tl.constexpr = x.shape[0]
    groups = lanes_tl(tl.reshape(x, (TILE * 4, 16)), 16)
    largest, _ = lanes_range_tl(groups, 16)
    largest = tl.abs(largest)
    byte = _scale_byte_tl(tl.div_rn(largest, tl.full((TILE * 4,), _TOP, tl.float32)))
    step = half_e4m3_tl(byte)
    # Far above the largest scale errors round until numbers seem as near as others.
    if tl.max(largest, axis=0) > _EXACT:
        words = _tried_words_tl(groups, step)
    else:
        # Under a scale of zero no number is nearer than zero.
        words = _words_tl(groups, tl.where(step == 0.0, float("inf"), step))
    placed = tl.reshape(byte, (TILE, 4)) << (tl.arange(0, 4)[None, :] * 8)
    head = tl.reshape(tl.sum(placed, axis=1), (TILE, 1))
    store_words32_tl(out, at, head, mask)
    packed = tl.reshape(tl.join(words[0], words[1]), (TILE, 8))
    store_words32_tl(out, at + 4, packed, mask)


@triton.jit
def _words_tl(x, step):
    """Two int32 lanes: the levels of a tuple of 16, packed."""
    levels = ()
    for i in tl.static_range(16):
        levels = levels + (nearest_e2m1_tl(x[i], step),)  # noqa: RUF005
    return _packed_tl(levels)


@triton.jit
def _tried_words_tl(x, step):
    """`_words_tl` by `tried_e2m1_tl`."""
    levels = ()
    for i in tl.static_range(16):
        levels = levels + (tried_e2m1_tl(x[i], step),)  # noqa: RUF005
    return _packed_tl(levels)


@triton.jit
def _packed_tl(levels):
    words = byte_lanes_tl(levels, 4)
    return words[0] + (words[2] << 4), words[1] + (words[3] << 4)


@triton.jit
def _scale_byte_tl(v):
    """int32 0..126: `_scale_byte`."""
    normal = ((v.to(tl.int32, bitcast=True) + 0x80000) >> 20) - 960
    normal = tl.where(normal >= 0x78, _LARGEST, normal)
    normal = tl.where(v < _LEAST_BEYOND, normal, _LARGEST)
    small = tl.minimum(tl.where(v < 0.015625, v * 512.0 + 0.5, 0.0).to(tl.int32), 7)
    return tl.where(v < 0.015625, small, normal)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`, a sixteen: levels j and, 8 further, j + 8."""
    byte = load_eight_tl(blocks, at + 4 + part * 8, mask)
    low, high = codebook_pair_tl(byte, E2M1_WORDS, E2M1_ASSEMBLY)
    step = half_e4m3_tl(load_byte_tl(blocks, at + part, mask))[:, None]
    return low * step, high * step


ROWS = (
    QuantType(
        FACTS["NVFP4"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            pieces=Pieces(pieces_tl, 8, 2),
            tile=32,
            vectors=parts_codebook_triton.NVFP4,
        ),
    ),
)
