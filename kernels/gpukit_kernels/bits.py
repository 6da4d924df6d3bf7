"""Rounding and packing shared by the quant types: torch functions.

Tiles are `[elements, lanes]`: element i of every block is one row, lanes (blocks) are contiguous.
Between stages bytes, levels and truths (1 or 0) are float32: compiled code reads other types from
memory several times as slowly.
"""

import torch
from torch import Tensor

# 1.5 * 2**23: adding it to a float32 leaves the value rounded to an integer in the low bits.
ROUND_MAGIC = 12582912.0


def nearest_int(v: Tensor) -> Tensor:
    """int32: `v` rounded half to even for |v| < 2**22; beyond that and for NaN the low bits.

    That tail is no number, but llama.cpp stores what comes of it, so it is part of the format
    (`nearest_int` of ggml-quants.c).
    """
    return ((v + ROUND_MAGIC).view(torch.int32) & 0x7FFFFF) - 0x400000


def nearest_level(v: Tensor, low: int, high: int) -> Tensor:
    """float32: `nearest_int(v)` clamped to `low..high`, without leaving the float format."""
    bits = ((v + ROUND_MAGIC).view(torch.int32) & 0x7FFFFF) | 0x4B000000
    return bits.clamp(0x4B400000 + low, 0x4B400000 + high).view(torch.float32) - ROUND_MAGIC


def clamped_level(v: Tensor, high: int) -> Tensor:
    """float32: `v` clamped to 0..`high`, then rounded half to even; 0 for NaN.

    It differs from `nearest_level` only where that meets what is no number.
    """
    clamped = torch.where(v > 0, v, torch.zeros_like(v)).clamp(max=high)
    return (clamped + ROUND_MAGIC) - ROUND_MAGIC


def round_away(v: Tensor) -> Tensor:
    """int32: `v` rounded, halves away from zero, as C's roundf; |v| < 2**22.

    The addend is the float below one half: with one half itself the float below 0.5 would become 1.
    """
    almost_half = torch.full((), 0.49999997, dtype=v.dtype, device=v.device)
    return (v + torch.copysign(almost_half, v)).to(torch.int32)


def divide(a: float, b: Tensor) -> Tensor:
    """a / b, truly divided: torch computes `63.0 / t` as a reciprocal times 63."""
    return torch.full_like(b, a) / b


def root(v: Tensor) -> Tensor:
    """The correctly rounded square root of float32: torch's own float32 root on the CPU is not."""
    return v.to(torch.float64).sqrt().to(torch.float32)


def half_bits(v: Tensor) -> Tensor:
    """int32 in 0..65535: the fp16 pattern of `v`, rounded to even; a NaN is 0x7E00 plus sign."""
    # In float32 and int32 only: a stage with fp16's bits in it would be compiled without vectors.
    # What overflows becomes infinite. Then a power of two is added whose last bit is the last that
    # fp16 has, so that the sum is rounded there; its low bits are the result's mantissa.
    bits = v.view(torch.int32)
    magnitude = (v.abs() * 2.0**112) * 2.0**-110
    last = (bits & 0x7F800000).clamp(min=0x38800000) + 0x07800000
    rounded = (last.view(torch.float32) + magnitude).view(torch.int32)
    half = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF)
    return ((bits >> 16) & 0x8000) | torch.where(v != v, 0x7E00, half)


def half_round(v: Tensor) -> Tensor:
    """float32: `v` after rounding to fp16, what a reader of the block will see."""
    return v.to(torch.float16).to(torch.float32)


def word_bytes(bits: Tensor, count: int) -> Tensor:
    """Bytes `[count, lanes]`: the low `count` bytes of int32 `[lanes]`, little endian."""
    return torch.stack([((bits >> (8 * i)) & 0xFF).to(torch.float32) for i in range(count)])


def byte_word(blocks: Tensor, at: int, count: int) -> Tensor:
    """int32 `[lanes]`: `count` bytes of uint8 `[bytes, lanes]` from `at` on, little endian."""
    word = blocks[at].to(torch.int32)
    for i in range(1, count):
        word = word | (blocks[at + i].to(torch.int32) << (8 * i))
    return word


def half_value(blocks: Tensor, at: int) -> Tensor:
    """float32 `[lanes]`: the fp16 that bytes `at` and `at + 1` of uint8 `[bytes, lanes]` hold."""
    word = byte_word(blocks, at, 2)
    return word.to(torch.int16).view(torch.float16).to(torch.float32)


def pack_nibbles(levels: Tensor) -> Tensor:
    """Bytes `[16, lanes]` of int32 `[32, lanes]`: level j low, level j + 16 high.

    A level out of 0..15 spills into its neighbour, or out of the byte.
    """
    return ((levels[:16] | (levels[16:] << 4)) & 0xFF).to(torch.float32)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 `[32, lanes]` of uint8 `[16, lanes]`."""
    return torch.cat([packed & 0x0F, packed >> 4])


def pack_crumbs(levels: Tensor) -> Tensor:
    """Bytes `[64, lanes]` of int32 `[256, lanes]` in 0..3 (`qs` of block_q2_K, block_q3_K).

    Byte 32 h + j: levels j, j + 32, j + 64 and j + 96 of half h, two bits each from below.
    """
    parts = levels.view(2, 4, 32, -1)
    packed = parts[:, 0] | (parts[:, 1] << 2) | (parts[:, 2] << 4) | (parts[:, 3] << 6)
    return packed.to(torch.float32).view(64, -1)


def packed_fields(fields: Tensor, bits: int) -> Tensor:
    """Bytes, int32 `[n * bits / 8, lanes]`, of int32 `[n, lanes]` of so many bits, the first field
    of a byte lowest."""
    parts = fields.view(-1, 8 // bits, fields.shape[-1])
    packed = parts[:, 0]
    for i in range(1, 8 // bits):
        packed = packed | (parts[:, i] << (bits * i))
    return packed


def unpack_crumbs(packed: Tensor) -> Tensor:
    """uint8 `[256, lanes]` of uint8 `[64, lanes]`."""
    parts = packed.view(2, 32, -1)
    return torch.stack([(parts >> (2 * k)) & 3 for k in range(4)], dim=1).view(256, -1)


def pack_scales6(scale: Tensor, low: Tensor) -> Tensor:
    """Bytes `[12, lanes]` of two int32 `[8, lanes]` in 0..63 (`scales` of block_q4_K, block_q5_K).

    bytes 0-3   scale 0-3, above them the two high bits of scale 4-7
    bytes 4-7   min 0-3, above them the two high bits of min 4-7
    bytes 8-11  the four low bits of scale 4-7, above them those of min 4-7
    """
    return torch.cat(
        [
            scale[:4] | ((scale[4:] >> 4) << 6),
            low[:4] | ((low[4:] >> 4) << 6),
            (scale[4:] & 15) | ((low[4:] & 15) << 4),
        ]
    ).to(torch.float32)


def unpack_scales6(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and mins, int32 `[8, lanes]` each, of uint8 `[12, lanes]`."""
    first, second, third = packed.to(torch.int32).split(4)
    scale = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)])
    low = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)])
    return scale, low


def viewed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 `data` as `dtype`; where no value may begin it has to move."""
    return (data.clone() if data.storage_offset() % dtype.itemsize else data).view(dtype)
