"""Rounding, packing and access to blocks in Triton: the twins of bits.py, one job each.

Exactness: kernels are launched with `enable_fp_fusion=False` (no FMA), divide with `tl.div_rn` and
take roots with `tl.sqrt_rn`; plain `/` and `tl.sqrt` are approximate. Before Triton 3.6 those two
flush subnormals on a GPU. A NaN that is made has other bits on a GPU (0x7FFFFFFF) than on x86
(0xFFC00000), so only `half_bits_tl` looks at them. Before Triton 3.9 `-v` is `0 - v`, which gives a
zero the wrong sign: floats are negated by `negated_tl`.

`at` is an int32 `[TILE]` of byte offsets of blocks; blocks are a uint8 pointer.
"""

from gpukit_kernels import bits
from gpukit_kernels.jit import tl, triton

_MAGIC = tl.constexpr(bits.ROUND_MAGIC)
_LOWEST = tl.constexpr(float("-inf"))


@triton.jit
def divide_tl(a, b):
    """float32: the constant or tensor `a` truly divided by the tensor `b`."""
    return tl.div_rn(tl.zeros_like(b) + a, b)


@triton.jit
def negated_tl(v):
    """float32: -v, zeros too."""
    return v * -1.0


@triton.jit
def inverse_tl(d):
    """float32: 1 / d, 0 where d is 0."""
    return tl.where(d != 0.0, divide_tl(1.0, d), 0.0)


@triton.jit
def nearest_int_tl(v):
    """int32: bits.nearest_int; 0 for NaN, which is what x86's NaN gives."""
    moved = v + _MAGIC
    mantissa = moved.to(tl.int32, bitcast=True) & 0x7FFFFF
    return tl.where(moved == moved, mantissa - 0x400000, 0)


@triton.jit
def nearest_level_tl(v, LOW: tl.constexpr, HIGH: tl.constexpr):
    """float32: bits.nearest_level; 0 for NaN."""
    moved = v + _MAGIC
    # One instruction: a NaN becomes -inf, whose mantissa is clamped to LOW; for LOW 0 that will do.
    moved = tl.maximum(moved, _LOWEST) if LOW == 0 else tl.where(moved == moved, moved, _MAGIC)
    pattern = (moved.to(tl.int32, bitcast=True) & 0x7FFFFF) | 0x4B000000
    pattern = tl.minimum(tl.maximum(pattern, 0x4B400000 + LOW), 0x4B400000 + HIGH)
    return pattern.to(tl.float32, bitcast=True) - _MAGIC


@triton.jit
def clamped_level_tl(v, HIGH: tl.constexpr):
    """float32: bits.clamped_level."""
    return (tl.where(v > 0.0, tl.minimum(v, HIGH * 1.0), 0.0) + _MAGIC) - _MAGIC


@triton.jit
def truncate_tl(v):
    """int32: `v` towards zero; NaN and what does not fit become the lowest int32, as on x86."""
    fits = tl.abs(v) < 2147483648.0
    return tl.where(fits, tl.where(fits, v, 0.0).to(tl.int32), -2147483648)


@triton.jit
def round_away_tl(v):
    """int32: bits.round_away, converted as `truncate_tl` does."""
    whole = truncate_tl(v)
    rest = tl.abs(v - whole.to(tl.float32))
    # The rest is 1 and more only where the conversion gave up.
    return whole + tl.where((rest >= 0.5) & (rest < 1.0), tl.where(v < 0.0, -1, 1), 0)


@triton.jit
def signed_byte_tl(v):
    """int32 -128..127: the low byte of int32 `v` as C's int8."""
    return (v << 24) >> 24


@triton.jit
def half_bits_tl(v):
    """int16: bits.half_bits of what was computed: a GPU's NaN gets the sign of x86's."""
    pattern = v.to(tl.int32, bitcast=True)
    return _half_bits_tl(v, tl.where(pattern == 0x7FFFFFFF, -1, pattern))


@triton.jit
def given_half_bits_tl(v):
    """int16: bits.half_bits of a value that was given, or of a magnitude: a NaN keeps its sign."""
    return _half_bits_tl(v, v.to(tl.int32, bitcast=True))


@triton.jit
def _half_bits_tl(v, signed):
    plain = v.to(tl.float16).to(tl.int16, bitcast=True)
    nan = ((signed >> 16) & 0x8000) | 0x7E00
    return tl.where(v == v, plain, nan.to(tl.int16))


# Whether kernels run in the interpreter instead of being compiled.
INTERPRETED = tl.constexpr(not isinstance(half_bits_tl, triton.JITFunction))


@triton.jit
def bfloat_bits_tl(v):
    """int16: the upper half of `v`, rounded to even; a NaN keeps its upper bits, made quiet."""
    pattern = v.to(tl.int32, bitcast=True)
    upper = pattern >> 16
    nan = (pattern & 0x7FFFFFFF) > 0x7F800000
    return tl.where(nan, upper | 64, (pattern + (0x7FFF + (upper & 1))) >> 16).to(tl.int16)


@triton.jit
def small_int_tl(v):
    """int32: `v`, which fits, towards zero; 0 for NaN, as a GPU has it."""
    return (tl.where(v == v, v, 0.0) if INTERPRETED else v).to(tl.int32)


@triton.jit
def half_round_tl(v):
    """float32: bits.half_round."""
    return v.to(tl.float16).to(tl.float32)


@triton.jit
def load_float_tl(pointer, mask):
    """float32: the float32, float16 or bfloat16 at `pointer`; 0 where masked."""
    if pointer.dtype.element_ty == tl.bfloat16:
        # By bits: a conversion need not keep a NaN's, and the interpreter's is not exact.
        word = tl.load(pointer.to(tl.pointer_type(tl.int16)), mask=mask, other=0)
        return (word.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_float_tl(pointer, v, mask):
    """Store float32 `v` at `pointer`, rounded to its float32, float16 or bfloat16."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        # The interpreter's conversion is not exact; a GPU's is, up to the bits of a NaN.
        tl.store(pointer.to(tl.pointer_type(tl.int16)), bfloat_bits_tl(v), mask=mask)
    else:
        tl.store(pointer, v.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_byte_tl(blocks, at, mask):
    """int32: the byte at `at`, of any shape; 0 where masked."""
    return tl.load(blocks + at, mask=mask, other=0).to(tl.int32)


@triton.jit
def load_half_tl(blocks, at, mask):
    """float32: the fp16 at `at`. Two byte loads, since a view of a file may begin anywhere."""
    word = load_byte_tl(blocks, at, mask) | (load_byte_tl(blocks, at + 1, mask) << 8)
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def store_word16_tl(out, at, word, mask):
    """Store the low 16 bits of `word` at `at`, which is even."""
    tl.store((out + at).to(tl.pointer_type(tl.int16)), word.to(tl.int16), mask=mask)


@triton.jit
def store_words16_tl(out, at, words, mask, COUNT: tl.constexpr = None):
    """Store the low 16 bits of int32 `[TILE, N]` side by side from `at` `[TILE]` on, which is even;
    with COUNT only so many of each row.

    Of a byte pointer with steps of two Triton does not see that neighbours are neighbours, and
    gives each lane another block: so the pointer is one to int16 before anything is added.
    """
    word = tl.arange(0, words.shape[1])[None, :]
    place = out.to(tl.pointer_type(tl.int16)) + (at >> 1)[:, None] + word
    stored = mask[:, None] if COUNT is None else mask[:, None] & (word < COUNT)
    tl.store(place, words.to(tl.int16), mask=stored)


@triton.jit
def store_halves_tl(out, at, words, mask, COUNT: tl.constexpr = None):
    """Store int32 `[TILE, N]` side by side from `at` `[TILE]` on, which is even; with COUNT only so
    many halves of each row."""
    halves = tl.reshape(tl.join(words, words >> 16), (at.shape[0], 2 * words.shape[1]))
    store_words16_tl(out, at, halves, mask, COUNT)


@triton.jit
def store_word32_tl(out, at, word, mask):
    """Store int32 `word` at `at`, a multiple of four."""
    tl.store((out + at).to(tl.pointer_type(tl.int32)), word, mask=mask)


@triton.jit
def store_words32_tl(out, at, words, mask, COUNT: tl.constexpr = None):
    """Store int32 `[TILE, N]` side by side from `at` `[TILE]` on, a multiple of four; with COUNT
    only so many of each row.

    One store where there could be many: Triton looks at the whole kernel for each.
    """
    word = tl.arange(0, words.shape[1])[None, :]
    place = out.to(tl.pointer_type(tl.int32)) + (at >> 2)[:, None] + word
    stored = mask[:, None] if COUNT is None else mask[:, None] & (word < COUNT)
    tl.store(place, words, mask=stored)


@triton.jit
def store_bytes_tl(out, at, levels, mask):
    """Store int32 `[TILE, N]` in 0..255 as bytes side by side from `at` `[TILE]` on, which is even;
    N is a multiple of four."""
    shape: tl.constexpr = (levels.shape[0], levels.shape[1] // 4, 4)
    placed = tl.reshape(levels, shape) << (tl.arange(0, 4)[None, None, :] * 8)
    store_halves_tl(out, at, tl.sum(placed, axis=2), mask)


@triton.jit
def half_pair_tl(low, high):
    """int32: bits.half_bits of two float32, the first in the low half."""
    return (half_bits_tl(low).to(tl.int32) & 0xFFFF) | (half_bits_tl(high).to(tl.int32) << 16)


@triton.jit
def load_nibbles_tl(blocks, at, mask):
    """int32 `[TILE, 32]`: bits.unpack_nibbles of the 16 bytes at `at`."""
    # Each byte once: a thread has both its levels.
    byte = load_byte_tl(blocks, at[:, None] + tl.arange(0, 16)[None, :], mask[:, None])
    levels = tl.permute(tl.join(byte & 15, byte >> 4), (0, 2, 1))  # [TILE, 2, 16]
    return tl.reshape(levels, (at.shape[0], 32))


@triton.jit
def store_nibbles_tl(out, at, levels, mask):
    """Store bits.pack_nibbles of int32 `[TILE, 32]` in 0..15 at `at`, which is even."""
    TILE: tl.constexpr = levels.shape[0]
    # Four levels a word, which a thread holds, before the halves meet across threads.
    placed = tl.reshape(levels, (TILE, 8, 4)) << (tl.arange(0, 4)[None, None, :] * 8)
    words = tl.reshape(tl.sum(placed, axis=2), (TILE, 2, 4)) << (tl.arange(0, 2)[None, :, None] * 4)
    store_halves_tl(out, at, tl.sum(words, axis=1), mask)


@triton.jit
def load_crumbs_tl(blocks, at, mask):
    """int32 `[TILE, 16, 16]`: bits.unpack_crumbs of the 64 bytes at `at`, in groups of 16."""
    group = tl.arange(0, 16)[None, :, None]
    within = group // 8 * 32 + group % 2 * 16 + tl.arange(0, 16)[None, None, :]
    byte = load_byte_tl(blocks, at[:, None, None] + within, mask[:, None, None])
    return (byte >> (group // 2 % 4 * 2)) & 3


@triton.jit
def crumb_words_tl(words, TILE: tl.constexpr):
    """int32 `[TILE, 16]`: bits.pack_crumbs, four bytes a word.

    int32 `words` `[TILE * 16, 4]` hold the levels of 16 groups, a byte each, in its low two bits.
    """
    # Groups number half, quarter, sixteen; the quarters share a byte.
    shift = tl.arange(0, 4)[None, None, :, None, None] * 2
    levels = tl.reshape(words & 0x03030303, (TILE, 2, 4, 2, 4)) << shift
    return tl.reshape(tl.sum(levels, axis=2), (TILE, 16))
