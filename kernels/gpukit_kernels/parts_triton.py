"""How the kernels of `vectors_triton` read types whose blocks begin at any multiple of two.

A thread takes one word of levels, so that its neighbours read the bytes beside it: with more, each
of its short loads would touch every line that the warp reads. Words are two loads of 16 bits.
"""

from gpukit_kernels.dots_triton import half_value_tl, load_tl, load_word_tl, spread_bits_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import VectorParts


@triton.jit
def _halves_tl(blocks, first, block, HALVES: tl.constexpr):
    """Pointers to int16: where blocks of HALVES times two bytes begin."""
    return blocks.to(tl.pointer_type(tl.int16)) + first * HALVES + block * HALVES


@triton.jit
def part_tl(part):
    """Parts follow one another as their values do, four a part."""
    return part


@triton.jit
def q8_0_read_tl(blocks, first, block, part, _, mask):
    at = _halves_tl(blocks, first, block, 17)
    return load_word_tl(at + 1 + part * 2, mask), load_tl(at, mask)


@triton.jit
def q8_0_unpack_tl(found, _):
    return (found[0],), (half_value_tl(found[1]),), ()


@triton.jit
def q4_0_read_tl(blocks, first, block, part, _, mask):
    at = _halves_tl(blocks, first, block, 9)
    return load_word_tl(at + 1 + part * 2, mask), load_tl(at, mask)


@triton.jit
def q4_0_unpack_tl(found, _):
    word = found[0]
    return (word & 0x0F0F0F0F, (word >> 4) & 0x0F0F0F0F), (half_value_tl(found[1]),), ()


@triton.jit
def q5_0_read_tl(blocks, first, block, part, _, mask):
    at = _halves_tl(blocks, first, block, 11)
    return (
        load_word_tl(at + 3 + part * 2, mask),
        load_tl(at, mask),
        load_tl(at + 1, mask),
        load_tl(at + 2, mask),
    )


@triton.jit
def q5_0_unpack_tl(found, part):
    word = found[0]
    low = spread_bits_tl(found[2].to(tl.int32) >> (part * 4)) << 4
    high = spread_bits_tl(found[3].to(tl.int32) >> (part * 4)) << 4
    words = (word & 0x0F0F0F0F) | low, ((word >> 4) & 0x0F0F0F0F) | high
    return words, (half_value_tl(found[1]),), ()


@triton.jit
def q6_k_read_tl(blocks, first, block, part, _, mask):
    """A word of low bits, of two quarters of a half; its word of high bits; two scales; d."""
    at = _halves_tl(blocks, first, block, 105)
    half, odd, column = part // 16, part // 8 % 2, part % 8
    scales = at.to(tl.pointer_type(tl.int8)) + 192 + half * 8 + odd * 2 + column // 4
    return (
        load_word_tl(at + part * 2, mask),
        load_word_tl(at + 64 + half * 16 + column * 2, mask),
        load_tl(scales, mask),
        load_tl(scales + 4, mask),
        load_tl(at + 104, mask),
    )


@triton.jit
def q6_k_unpack_tl(found, part):
    word, high = found[0], found[1] >> (part // 8 % 2 * 2)
    d = half_value_tl(found[4])
    words = (
        (word & 0x0F0F0F0F) | ((high << 4) & 0x30303030),
        ((word >> 4) & 0x0F0F0F0F) | (high & 0x30303030),
    )
    return words, (d * found[2].to(tl.float32), d * found[3].to(tl.float32)), ()


@triton.jit
def q6_k_place_tl(part):
    return part // 16 * 32 + part % 16


Q8_0 = VectorParts(
    q8_0_read_tl,
    q8_0_unpack_tl,
    part_tl,
    parts=8,
    pieces=1,
    stride=0,
    words=1,
    top=128,
    signed=True,
)
Q4_0 = VectorParts(
    q4_0_read_tl, q4_0_unpack_tl, part_tl,
    parts=4, pieces=1, stride=0, words=2, top=8, word_stride=4, center=8,
)  # fmt: skip
Q5_0 = VectorParts(
    q5_0_read_tl, q5_0_unpack_tl, part_tl,
    parts=4, pieces=1, stride=0, words=2, top=16, word_stride=4, center=16,
)  # fmt: skip
Q6_K = VectorParts(
    q6_k_read_tl,
    q6_k_unpack_tl,
    q6_k_place_tl,
    parts=32,
    pieces=2,
    stride=16,
    words=1,
    top=32,
    center=32,
)
