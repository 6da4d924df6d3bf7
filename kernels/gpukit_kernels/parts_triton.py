"""How the kernels of `vectors_triton` read types whose blocks begin at any multiple of two.

A thread takes one or two words of levels, so that its neighbours read the bytes beside it: with
more, each of its short loads would touch every line that the warp reads. A word is two loads of 16
bits. What it has more in a wider part, a thread saves in addresses and steps.
"""

from gpukit_kernels.dots_triton import half_value_tl, load_tl, load_word_tl, spread_bits_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import VectorParts


@triton.jit
def _halves_tl(blocks, first, block, HALVES: tl.constexpr):
    """Pointers to int16: where blocks of HALVES times two bytes begin."""
    return blocks.to(tl.pointer_type(tl.int16)) + first * HALVES + block * HALVES


@triton.jit
def two_words_tl(part):
    """Parts of eight values follow one another."""
    return part * 2


@triton.jit
def _two_words_tl(at, part, mask):
    """Words 2 part and 2 part + 1 of the levels that begin at `at`."""
    return load_word_tl(at + part * 4, mask), load_word_tl(at + part * 4 + 2, mask)


@triton.jit
def _nibbles_tl(words):
    """The low levels of two words, then the high ones."""
    return (
        words[0] & 0x0F0F0F0F,
        words[1] & 0x0F0F0F0F,
        (words[0] >> 4) & 0x0F0F0F0F,
        (words[1] >> 4) & 0x0F0F0F0F,
    )


@triton.jit
def q8_0_read_tl(blocks, first, block, part, _, mask):
    at = _halves_tl(blocks, first, block, 17)
    return _two_words_tl(at + 1, part, mask) + (load_tl(at, mask),)  # noqa: RUF005


@triton.jit
def q8_0_unpack_tl(found, _):
    return (found[0], found[1]), (half_value_tl(found[2]),), ()


@triton.jit
def q4_0_read_tl(blocks, first, block, part, _, mask):
    at = _halves_tl(blocks, first, block, 9)
    return _two_words_tl(at + 1, part, mask) + (load_tl(at, mask),)  # noqa: RUF005


@triton.jit
def q4_0_unpack_tl(found, _):
    d = half_value_tl(found[2])
    return _nibbles_tl((found[0], found[1])), (d, d), ()


@triton.jit
def q5_0_read_tl(blocks, first, block, part, _, mask):
    """A word of low bits; the block's d, and its high bits, of levels 0-15 and 16-31."""
    at = _halves_tl(blocks, first, block, 11)
    head = load_tl(at, mask), load_tl(at + 1, mask), load_tl(at + 2, mask)
    return (load_word_tl(at + 3 + part * 2, mask),) + head  # noqa: RUF005


@triton.jit
def q5_0_unpack_tl(found, part):
    low = spread_bits_tl(found[2].to(tl.int32) >> (part * 4)) << 4
    high = spread_bits_tl(found[3].to(tl.int32) >> (part * 4)) << 4
    words = (found[0] & 0x0F0F0F0F) | low, ((found[0] >> 4) & 0x0F0F0F0F) | high
    return words, (half_value_tl(found[1]),), ()


@triton.jit
def one_word_tl(part):
    """Parts of four values follow one another; with two words some version of Triton spills."""
    return part


@triton.jit
def q6_k_read_tl(blocks, first, block, part, _, mask):
    """Four of each quarter of a half: two words of low bits, one of high bits; four scales; d."""
    at = _halves_tl(blocks, first, block, 105)
    half, column = part // 8, part % 8
    low = at + half * 32 + column * 2
    scales = at.to(tl.pointer_type(tl.int8)) + 192 + half * 8 + column // 4
    return (
        load_word_tl(low, mask),
        load_word_tl(low + 16, mask),
        load_word_tl(at + 64 + half * 16 + column * 2, mask),
        load_tl(scales, mask),
        load_tl(scales + 2, mask),
        load_tl(scales + 4, mask),
        load_tl(scales + 6, mask),
        load_tl(at + 104, mask),
    )


@triton.jit
def q6_k_unpack_tl(found, _):
    first, second, high = found[0], found[1], found[2]
    words = (
        (first & 0x0F0F0F0F) | ((high << 4) & 0x30303030),
        (second & 0x0F0F0F0F) | ((high << 2) & 0x30303030),
        ((first >> 4) & 0x0F0F0F0F) | (high & 0x30303030),
        ((second >> 4) & 0x0F0F0F0F) | ((high >> 2) & 0x30303030),
    )
    d = half_value_tl(found[7])
    steps = ()
    for i in tl.static_range(4):
        steps = steps + (d * found[3 + i].to(tl.float32),)  # noqa: RUF005
    return words, steps, ()


@triton.jit
def q6_k_place_tl(part):
    return part // 8 * 32 + part % 8


@triton.jit
def q3_k_read_tl(blocks, first, block, part, _, mask):
    """Four of each quarter of a half: a word of low bits, one of third bits; bytes with the low
    four bits of their four scales, and two with the high ones; d."""
    at = _halves_tl(blocks, first, block, 55)
    column = part % 8
    scales = at.to(tl.pointer_type(tl.uint8)) + 96 + column // 4
    return (
        load_word_tl(at + 16 + part * 2, mask),
        load_word_tl(at + column * 2, mask),
        load_tl(scales, mask),
        load_tl(scales + 2, mask),
        load_tl(scales + 4, mask),
        load_tl(scales + 6, mask),
        load_tl(scales + 8, mask),
        load_tl(scales + 10, mask),
        load_tl(at + 54, mask),
    )


@triton.jit
def q3_k_unpack_tl(found, part):
    half = part // 8
    third = found[1] >> (4 * half)
    words = (
        (found[0] & 0x03030303) | ((third << 2) & 0x04040404),
        ((found[0] >> 2) & 0x03030303) | ((third << 1) & 0x04040404),
        ((found[0] >> 4) & 0x03030303) | (third & 0x04040404),
        ((found[0] >> 6) & 0x03030303) | ((third >> 1) & 0x04040404),
    )
    d = half_value_tl(found[8])
    steps = ()
    for i in tl.static_range(4):
        low = (found[2 + i].to(tl.int32) >> (4 * half)) & 15
        high = (found[6 + i % 2].to(tl.int32) >> (4 * half + 2 * (i // 2))) & 3
        code = low | (high << 4)
        steps = steps + (d * (code.to(tl.float32) - 32.0),)  # noqa: RUF005
    return words, steps, ()


Q8_0 = VectorParts(
    q8_0_read_tl, q8_0_unpack_tl, two_words_tl,
    parts=4, pieces=1, stride=0, words=2, top=128, signed=True,
)  # fmt: skip
Q4_0 = VectorParts(
    q4_0_read_tl, q4_0_unpack_tl, two_words_tl,
    parts=2, pieces=2, stride=4, words=2, top=8, center=8,
)  # fmt: skip
Q5_0 = VectorParts(
    q5_0_read_tl, q5_0_unpack_tl, one_word_tl,
    parts=4, pieces=1, stride=0, words=2, top=16, word_stride=4, center=16,
)  # fmt: skip
Q6_K = VectorParts(
    q6_k_read_tl, q6_k_unpack_tl, q6_k_place_tl,
    parts=16, pieces=4, stride=8, words=1, top=32, center=32,
)  # fmt: skip
Q3_K = VectorParts(
    q3_k_read_tl, q3_k_unpack_tl, q6_k_place_tl,
    parts=16, pieces=4, stride=8, words=1, top=4, center=4,
)  # fmt: skip
