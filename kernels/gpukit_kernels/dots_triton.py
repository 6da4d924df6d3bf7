"""Integer products of int16 with packed bytes, and loads of packed words, for kernels of products.

A word holds four levels, a byte each; four int16 of x are two words. Where a GPU computes, two
instructions (dp2a) do the four products.
"""

from gpukit_kernels.bits_triton import INTERPRETED
from gpukit_kernels.jit import tl, triton


@triton.jit
def dot4_tl(x, levels, start, SIGNED: tl.constexpr):
    """int32: `start` plus the four bytes of `levels` times the int16 of the pair of words `x`."""
    if INTERPRETED:
        for i in tl.static_range(4):
            signed = (levels << (24 - 8 * i)) >> 24
            level = signed if SIGNED else signed & 255
            start += ((x[i // 2] << (16 - 16 * (i % 2))) >> 16) * level
        return start
    low: tl.constexpr = "s32" if SIGNED else "u32"
    start = tl.inline_asm_elementwise(
        "dp2a.lo.s32." + low + " $0, $1, $2, $3;",
        "=r,r,r,r",
        [x[0], levels, start],
        tl.int32,
        True,
        1,
    )
    return tl.inline_asm_elementwise(
        "dp2a.hi.s32." + low + " $0, $1, $2, $3;",
        "=r,r,r,r",
        [x[1], levels, start],
        tl.int32,
        True,
        1,
    )


@triton.jit
def load_tl(pointer, mask):
    """What lies at `pointer`, 0 where masked; `mask` None masks nothing."""
    return tl.load(pointer, mask=mask, other=None if mask is None else 0)


@triton.jit
def load2_tl(pointer, mask):
    """Two `[Q]`: the two neighbours at each of `[Q]` pointers."""
    place = pointer[:, None] + tl.arange(0, 2)[None, :]
    return tl.split(load_tl(place, None if mask is None else mask[:, None]))


@triton.jit
def load4_tl(pointer, mask):
    """Four `[Q]`: the four neighbours at each of `[Q]` pointers."""
    Q: tl.constexpr = pointer.shape[0]
    place = pointer[:, None] + tl.arange(0, 4)[None, :]
    found = load_tl(place, None if mask is None else mask[:, None])
    even, odd = tl.split(tl.reshape(found, (Q, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def load_word_tl(halves, mask):
    """int32 of the two int16 at `halves`: a word that begins at any multiple of two."""
    low = load_tl(halves, mask).to(tl.int32) & 0xFFFF
    return low | (load_tl(halves + 1, mask).to(tl.int32) << 16)


@triton.jit
def half_value_tl(word):
    """float32 of the fp16 in the low bits of `word`."""
    return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def spread_bits_tl(v):
    """int32: the low four bits of `v`, a byte each."""
    return ((v & 15) * 0x00204081) & 0x01010101


@triton.jit
def byte_value_tl(word, b: tl.constexpr, SIGNED: tl.constexpr):
    """float32 of byte `b` of `word`."""
    level = (word << (24 - 8 * b)) >> 24 if SIGNED else (word >> (8 * b)) & 255
    return level.to(tl.float32)
