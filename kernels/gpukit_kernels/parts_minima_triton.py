"""How the kernels of `vectors_triton` read types with minima whose blocks are whole words: Q4_1,
Q5_1, Q2_K.

A thread takes two words of levels: its neighbours read the bytes beside it.
"""

from gpukit_kernels.dots_triton import half_value_tl, load2_tl, load_tl, spread_bits_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.parts_triton import two_words_tl
from gpukit_kernels.table import VectorParts


@triton.jit
def _words_tl(blocks, first, block, WORDS: tl.constexpr):
    """Pointers to int32: where blocks of so many words begin."""
    return blocks.to(tl.pointer_type(tl.int32)) + first * WORDS + block * WORDS


@triton.jit
def _head_tl(word):
    """The step of both pieces, and what is taken off: m is added."""
    d, low = half_value_tl(word), -half_value_tl(word >> 16)
    return (d, d), (low, low)


@triton.jit
def q4_1_read_tl(blocks, first, block, part, _, mask):
    """Two words of levels; d and m."""
    at = _words_tl(blocks, first, block, 5)
    levels = at + 1 + part * 2
    return load_tl(levels, mask), load_tl(levels + 1, mask), load_tl(at, mask)


@triton.jit
def q4_1_unpack_tl(found, _):
    """Low levels, then high ones."""
    words = (
        found[0] & 0x0F0F0F0F,
        found[1] & 0x0F0F0F0F,
        (found[0] >> 4) & 0x0F0F0F0F,
        (found[1] >> 4) & 0x0F0F0F0F,
    )
    steps, offsets = _head_tl(found[2])
    return words, steps, offsets


@triton.jit
def q5_1_read_tl(blocks, first, block, part, _, mask):
    """Two words of low bits; d and m; the high bits of the block's levels."""
    at = _words_tl(blocks, first, block, 6)
    return load2_tl(at + 2 + part * 2, mask) + load2_tl(at, mask)


@triton.jit
def q5_1_unpack_tl(found, part):
    """As `q4_1_unpack_tl`."""
    low = found[3] >> (part * 8)
    high = found[3] >> (part * 8 + 16)
    words = (
        (found[0] & 0x0F0F0F0F) | (spread_bits_tl(low) << 4),
        (found[1] & 0x0F0F0F0F) | (spread_bits_tl(low >> 4) << 4),
        ((found[0] >> 4) & 0x0F0F0F0F) | (spread_bits_tl(high) << 4),
        ((found[1] >> 4) & 0x0F0F0F0F) | (spread_bits_tl(high >> 4) << 4),
    )
    steps, offsets = _head_tl(found[2])
    return words, steps, offsets


@triton.jit
def q2_k_read_tl(blocks, first, block, part, _, mask):
    """Eight of each quarter of a half: two words of levels, two with the half's scales and minima;
    d and dmin."""
    at = _words_tl(blocks, first, block, 21)
    levels, scales = at + 4 + part * 2, at + part // 4 * 2
    return (
        load_tl(levels, mask),
        load_tl(levels + 1, mask),
        load_tl(scales, mask),
        load_tl(scales + 1, mask),
        load_tl(at + 20, mask),
    )


@triton.jit
def q2_k_unpack_tl(found, part):
    d, dmin = half_value_tl(found[4]), half_value_tl(found[4] >> 16)
    # A quarter has two groups, of which the part is in one.
    odd = part % 4 // 2 * 8
    words, steps, offsets = (), (), ()
    for i in tl.static_range(4):
        words = words + ((found[0] >> (2 * i)) & 0x03030303,)  # noqa: RUF005
        words = words + ((found[1] >> (2 * i)) & 0x03030303,)  # noqa: RUF005
        code = found[2 + i // 2] >> (odd + i % 2 * 16)
        steps = steps + (d * (code & 15).to(tl.float32),)  # noqa: RUF005
        offsets = offsets + (dmin * ((code >> 4) & 15).to(tl.float32),)  # noqa: RUF005
    return words, steps, offsets


@triton.jit
def q2_k_place_tl(part):
    return part // 4 * 32 + part % 4 * 2


Q4_1 = VectorParts(
    q4_1_read_tl, q4_1_unpack_tl, two_words_tl,
    parts=2, pieces=2, stride=4, words=2, top=15, minima=True, align=4, together=2,
)  # fmt: skip
Q5_1 = VectorParts(
    q5_1_read_tl, q5_1_unpack_tl, two_words_tl,
    parts=2, pieces=2, stride=4, words=2, top=31, minima=True, align=4,
)  # fmt: skip
Q2_K = VectorParts(
    q2_k_read_tl, q2_k_unpack_tl, q2_k_place_tl,
    parts=8, pieces=4, stride=8, words=2, top=3, minima=True, align=4, together=1,
)  # fmt: skip
