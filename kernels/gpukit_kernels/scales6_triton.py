"""Scales and mins of six bits, eight of each in twelve bytes (Q4_K, Q5_K), in Triton: the twins of
bits.pack_scales6 and bits.unpack_scales6.
"""

from gpukit_kernels.bits_triton import load_byte_tl
from gpukit_kernels.jit import tl, triton


@triton.jit
def load_scales6_tl(blocks, at, mask):
    """Scales and mins, int32 `[TILE, 8]` each: bits.unpack_scales6 of the twelve bytes at `at`."""
    group = tl.arange(0, 8)[None, :]
    byte = at[:, None] + group % 4
    first = load_byte_tl(blocks, byte, mask[:, None])
    second = load_byte_tl(blocks, byte + 4, mask[:, None])
    third = load_byte_tl(blocks, byte + 8, mask[:, None])
    upper = group >= 4
    scale = tl.where(upper, (third & 15) | ((first >> 6) << 4), first & 63)
    low = tl.where(upper, (third >> 4) | ((second >> 6) << 4), second & 63)
    return scale, low


@triton.jit
def scales6_words_tl(scale, low):
    """Three int32 `[TILE]`: bits.pack_scales6 of two int32 `[TILE, 8]`."""
    group = tl.arange(0, 8)[None, :]
    shift = group % 4 * 8
    upper = group >= 4
    first = tl.where(upper, (scale >> 4) << 6, scale)
    second = tl.where(upper, (low >> 4) << 6, low)
    third = tl.where(upper, (scale & 15) | ((low & 15) << 4), 0)
    return (
        tl.sum(first << shift, axis=1),
        tl.sum(second << shift, axis=1),
        tl.sum(third << shift, axis=1),
    )


@triton.jit
def spilled6_tl(scale, low):
    """Scales and mins as a reader finds them where codes above 63 spill into others' bits."""
    return _spilled6_tl(scale), _spilled6_tl(low)


@triton.jit
def _spilled6_tl(code):
    TILE: tl.constexpr = code.shape[0]
    halves = tl.reshape(code, (TILE, 2, 4))
    first = tl.arange(0, 2)[None, :, None] == 0
    lower = tl.sum(tl.where(first, halves, 0), axis=1)[:, None, :]
    upper = (halves & 15) | ((((lower >> 6) | (halves >> 4)) & 3) << 4)
    return tl.reshape(tl.where(first, halves & 63, upper), (TILE, 8))
