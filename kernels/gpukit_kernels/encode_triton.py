"""Types of 32 values encoded by lanes: a thread has a whole block, loads it 16 bytes at a time and
stores whole words. Bytes are those of the types' other encoders, which take over where they are not
(`launch.encode_triton`).
"""

import torch

from gpukit_kernels.bits_triton import (
    INTERPRETED,
    divide_tl,
    given_half_bits_tl,
    half_bits_tl,
    half_pair_tl,
    inverse_tl,
    load_float_tl,
    store_word16_tl,
)
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl, rows_tl
from gpukit_kernels.search.common_triton import lanes_range_tl

_MOST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def encode_lanes_kernel(
    values,
    out,
    count,
    ENCODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """`count` rows of BLOCK values to blocks; a program encodes TILE of them, a thread one."""
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    lanes = ()
    values += first * BLOCK
    for part in tl.static_range(BLOCK // 8):
        place = values + block[:, None] * BLOCK + (8 * part + tl.arange(0, 8))[None, :]
        lanes = lanes + lanes_tl(load_float_tl(place, mask[:, None]), 8)
    ENCODE(lanes, out + first * NBYTES, block * NBYTES, mask)


@triton.jit
def q8_0_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`; so do all below."""
    largest = tl.zeros_like(x[0])
    for i in tl.static_range(32):
        # The C's maximum forgets what came before a NaN.
        largest = tl.where(largest > tl.abs(x[i]), largest, tl.abs(x[i]))
    d = divide_tl(largest, tl.full((1,), 127.0, tl.float32))
    inverse = inverse_tl(d)
    # The C converts what an infinite 1 / d gives, and any NaN, to a number whose low byte is 0.
    inverse = tl.where(inverse < float("inf"), inverse, 0.0)
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (_rounded_tl(x[i] * inverse),)  # noqa: RUF005
    _store_behind_half_tl(out, at, given_half_bits_tl(d), _byte_words_tl(levels), mask, 8)


@triton.jit
def _rounded_tl(v):
    """int32: the low byte of `v` rounded, halves away from zero; 0 of what is no int32."""
    # Only beside a NaN is a value far above the largest.
    v = tl.where(tl.abs(v) < 2147483648.0, v, 0.0)
    # The largest float below a half, with the sign of v, is added.
    half = (v.to(tl.int32, bitcast=True) & -0x80000000) | 0x3EFFFFFF
    return (v + half.to(tl.float32, bitcast=True)).to(tl.int32) & 0xFF


@triton.jit
def q4_0_tl(x, out, at, mask):
    d, words = _signed_words_tl(x, 8)
    _store_behind_half_tl(out, at, half_bits_tl(d), nibble_words_tl(words), mask, 4)


@triton.jit
def q5_0_tl(x, out, at, mask):
    d, words = _signed_words_tl(x, 16)
    stored = (_fifth_bits_tl(words),) + nibble_words_tl(words)  # noqa: RUF005
    _store_behind_half_tl(out, at, half_bits_tl(d), stored, mask, 8)


@triton.jit
def q4_1_tl(x, out, at, mask):
    d, low, words = _offset_words_tl(x, 15)
    stored = (half_pair_tl(d, low),) + nibble_words_tl(words)  # noqa: RUF005
    _store_words_tl(out, at, stored, mask, 8)


@triton.jit
def q5_1_tl(x, out, at, mask):
    d, low, words = _offset_words_tl(x, 31)
    head = (half_pair_tl(d, low), _fifth_bits_tl(words))
    _store_words_tl(out, at, head + nibble_words_tl(words), mask, 8)


@triton.jit
def _signed_words_tl(x, LEVELS: tl.constexpr):
    """d, float32 `[TILE]`, and levels, eight words of four: search.signed_levels; LEVELS is a power
    of two."""
    largest, _ = lanes_range_tl(x, 32)
    d = largest * (-1.0 / LEVELS)
    inverse, half = _finite_inverse_tl(d, LEVELS + 0.5)
    levels = ()
    for i in tl.static_range(32):
        level = _small_int_tl(x[i] * inverse + half)
        levels = levels + (tl.minimum(level, 2 * LEVELS - 1),)  # noqa: RUF005
    return d, _byte_words_tl(levels)


@triton.jit
def _offset_words_tl(x, LEVELS: tl.constexpr):
    """d and low, float32 `[TILE]`, and levels, eight words of four: search.offset_levels."""
    low = tl.zeros_like(x[0]) + _MOST
    high = tl.zeros_like(x[0]) - _MOST
    for i in tl.static_range(32):
        low = tl.where(x[i] < low, x[i], low)
        high = tl.where(x[i] > high, x[i], high)
    d = divide_tl(high - low, tl.full((1,), LEVELS, tl.float32))
    inverse, half = _finite_inverse_tl(d, 0.5)
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (_small_int_tl((x[i] - low) * inverse + half),)  # noqa: RUF005
    return d, low, _byte_words_tl(levels)


@triton.jit
def _finite_inverse_tl(d, ADDED: tl.constexpr):
    """float32: 1 / d and ADDED; both 0 where 1 / d is infinite, 1 / d 0 where d is 0.

    The C converts what an infinite 1 / d gives to the lowest int32, whose low byte is 0.
    """
    inverse = inverse_tl(d)
    finite = tl.abs(inverse) < float("inf")
    return tl.where(finite, inverse, 0.0), tl.where(finite, ADDED, 0.0)


@triton.jit
def _small_int_tl(v):
    """int32: `v`, which fits, towards zero; 0 for NaN, as a GPU has it."""
    return (tl.where(v == v, v, 0.0) if INTERPRETED else v).to(tl.int32)


@triton.jit
def _byte_words_tl(levels):
    """A tuple of eight int32 `[TILE]`: of 32 in 0..255, four bytes a word."""
    words = ()
    for i in tl.static_range(8):
        # Sums of what has no bit in common: a shift and a sum are one instruction.
        low = levels[4 * i] + (levels[4 * i + 1] << 8)
        high = levels[4 * i + 2] + (levels[4 * i + 3] << 8)
        words = words + (low + (high << 16),)  # noqa: RUF005
    return words


@triton.jit
def nibble_words_tl(words):
    """A tuple of four int32 `[TILE]`: bits.pack_nibbles of the low four bits of 32 levels."""
    found = ()
    for i in tl.static_range(4):
        low, high = words[i] & 0x0F0F0F0F, words[i + 4] & 0x0F0F0F0F
        found = found + (low + (high << 4),)  # noqa: RUF005
    return found


@triton.jit
def _fifth_bits_tl(words):
    """int32 `[TILE]`: bit j is the fifth bit of level j of 32."""
    found = tl.zeros_like(words[0])
    for i in tl.static_range(8):
        # The product brings the bits of the four bytes side by side, from bit 24 on.
        four = ((words[i] >> 4) & 0x01010101) * 0x01020408
        found = found | (((four >> 24) & 15) << (4 * i))
    return found


@triton.jit
def _store_behind_half_tl(out, at, head, words, mask, SIZE: tl.constexpr):
    """Store int16 `head` and a tuple of int32, at most SIZE, a power of two, at `at`, which is
    even, as whole words and the half that is left; `out` is a multiple of four or two more."""
    COUNT: tl.constexpr = len(words)
    # What a word is counts from the memory's begin, not from that of `out`.
    off = (out.to(tl.int64) & 2).to(tl.int32)
    out, at = out - off, at + off
    odd = (at & 2) != 0
    head = head.to(tl.int32)
    before = head
    stored = ()
    for i in tl.static_range(COUNT):
        low = before & 0xFFFF if i == 0 else (before >> 16) & 0xFFFF
        stored = stored + (tl.where(odd, words[i], low | (words[i] << 16)),)  # noqa: RUF005
        before = words[i]
    last = (before >> 16) & 0xFFFF
    store_word16_tl(out, tl.where(odd, at, at + 4 * COUNT), tl.where(odd, head, last), mask)
    _store_words_tl(out, (at + 2) & -4, stored, mask, SIZE)


@triton.jit
def _store_words_tl(out, at, words, mask, SIZE: tl.constexpr):
    """Store a tuple of int32, at most SIZE, a power of two, at `at` `[TILE]`, multiples of four."""
    COUNT: tl.constexpr = len(words)
    padded = words
    for _ in tl.static_range(SIZE - COUNT):
        padded = padded + (tl.zeros_like(words[0]),)  # noqa: RUF005
    word = tl.arange(0, SIZE)[None, :]
    place = out.to(tl.pointer_type(tl.int32)) + (at >> 2)[:, None] + word
    tl.store(place, rows_tl(padded, SIZE), mask=mask[:, None] & (word < COUNT))
