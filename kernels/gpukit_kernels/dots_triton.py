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


@triton.jit
def looked_up_tl(word, table):
    """Two words of bytes: the entries that the low nibbles of `word` name, and those of the high
    ones, of a `table` of sixteen bytes, four a word."""
    if INTERPRETED:
        return _entries_tl(word, table), _entries_tl(word >> 4, table)
    # Three bits of a nibble choose among eight bytes, the fourth between both halves of the table.
    three = word & 0x77777777
    half = ((word >> 1) & 0x44444444) | 0x32103210
    first = _permuted_tl(_permuted_tl(table[0], table[1], three),
                         _permuted_tl(table[2], table[3], three), half)  # fmt: skip
    three, half = three >> 16, half >> 16
    second = _permuted_tl(_permuted_tl(table[0], table[1], three),
                          _permuted_tl(table[2], table[3], three), half)  # fmt: skip
    return _permuted_tl(first, second, 0x6420), _permuted_tl(first, second, 0x7531)


@triton.jit
def _permuted_tl(low, high, choice):
    """int32: four of the eight bytes of `high` and `low`, by the lowest four nibbles of `choice`,
    0 to 7 each."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, choice], tl.int32, True, 1
    )


@triton.jit
def _entries_tl(word, table):
    """int32: the entries of the low nibbles, without `_permuted_tl`."""
    found = tl.zeros_like(word)
    for b in tl.static_range(4):
        code = (word >> (8 * b)) & 15
        low = tl.where((code & 4) != 0, table[1], table[0])
        high = tl.where((code & 4) != 0, table[3], table[2])
        entry = tl.where((code & 8) != 0, high, low) >> ((code & 3) * 8)
        found = found | ((entry & 255) << (8 * b))
    return found
