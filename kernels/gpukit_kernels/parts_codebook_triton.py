"""How the kernels of `vectors_triton` read types whose levels name numbers of a table of sixteen:
IQ4_NL, IQ4_XS, MXFP4, NVFP4. Their levels are those numbers then, signed bytes.
"""

from gpukit_kernels.dots_triton import half_value_tl, load2_tl, load4_tl, load_tl, looked_up_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.parts_triton import q4_0_read_tl, two_words_tl
from gpukit_kernels.search.codebook import CODEBOOK
from gpukit_kernels.search.e2m1 import E2M1
from gpukit_kernels.table import VectorParts


def _words(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Four numbers a word, as signed bytes."""
    packed = bytes(v & 0xFF for v in numbers)
    return tuple(int.from_bytes(packed[i : i + 4], "little", signed=True) for i in range(0, 16, 4))


_CODEBOOK = tl.constexpr(_words(tuple(CODEBOOK)))
_E2M1 = tl.constexpr(_words(E2M1 + tuple(-v for v in E2M1)))


@triton.jit
def _two_tl(first, second, table):
    """Four words: the numbers of the low levels of two words, then those of the high ones."""
    low, high = looked_up_tl(first, table)
    other_low, other_high = looked_up_tl(second, table)
    return low, other_low, high, other_high


@triton.jit
def iq4_nl_unpack_tl(found, _):
    d = half_value_tl(found[2])
    return _two_tl(found[0], found[1], _CODEBOOK), (d, d), ()


@triton.jit
def iq4_xs_read_tl(blocks, first, block, part, _, mask):
    """A group: four words of levels; the block's d and high bits of scales, and low bits."""
    at = blocks.to(tl.pointer_type(tl.int32)) + first * 34 + block * 34
    return load4_tl(at + 2 + part * 4, mask) + load2_tl(at, mask)


@triton.jit
def iq4_xs_unpack_tl(found, part):
    low, high = (), ()
    for i in tl.static_range(4):
        some, others = looked_up_tl(found[i], _CODEBOOK)
        low, high = low + (some,), high + (others,)  # noqa: RUF005
    code = ((found[5] >> (part * 4)) & 15) | (((found[4] >> (part * 2 + 16)) & 3) << 4)
    return low + high, (half_value_tl(found[4]) * (code.to(tl.float32) - 32.0),), ()


@triton.jit
def eight_words_tl(part):
    """Parts of 32 values follow one another."""
    return part * 8


@triton.jit
def mxfp4_read_tl(blocks, first, block, part, _, mask):
    """Three words that hold the part's eight bytes of levels, and at which bit they begin; e.

    Blocks begin at any byte: so whole words are read, of which the last holds the last byte.
    """
    begin = first * 17
    at = (begin & 3).to(tl.int32) + block * 17
    words = blocks.to(tl.pointer_type(tl.int32)) + (begin >> 2)
    levels = at + 1 + part * 8
    return (
        load_tl(words + (levels >> 2), mask),
        load_tl(words + (levels >> 2) + 1, mask),
        load_tl(words + ((levels + 7) >> 2), mask),
        (levels & 3) * 8,
        load_tl(blocks + begin + block * 17, mask),
    )


@triton.jit
def _joined_tl(low, high, shift):
    """int32: 32 bits of two words from bit `shift` of the first on."""
    return (low.to(tl.uint32, bitcast=True) >> shift).to(tl.int32, bitcast=True) | (
        (high << 1) << (31 - shift)
    )


@triton.jit
def mxfp4_unpack_tl(found, _):
    first = _joined_tl(found[0], found[1], found[3])
    second = _joined_tl(found[1], found[2], found[3])
    e = found[4].to(tl.int32)
    # 2^(e - 128); below e = 2 it is subnormal.
    bits = tl.where(e < 2, 0x200000 << tl.minimum(e, 1), (e - 1) << 23)
    step = bits.to(tl.float32, bitcast=True)
    return _two_tl(first, second, _E2M1), (step, step), ()


@triton.jit
def nvfp4_read_tl(blocks, first, block, part, _, mask):
    """A sixteen: its two words of levels and the byte of its scale."""
    begin = blocks + first * 36 + block * 36
    words = begin.to(tl.pointer_type(tl.int32)) + 1 + part * 2
    return load2_tl(words, mask) + (load_tl(begin + part, mask),)  # noqa: RUF005


@triton.jit
def nvfp4_unpack_tl(found, _):
    return _two_tl(found[0], found[1], _E2M1), (half_e4m3_tl(found[2].to(tl.int32)),), ()


@triton.jit
def half_e4m3_tl(byte):
    """float32: half of what int32 0..255 stands for in E4M3 without its sign; 0 for NaN's 0x7F."""
    exponent, fraction = (byte >> 3) & 15, byte & 7
    bits = ((exponent + 119) << 23) | (fraction << 20)
    normal = bits.to(tl.float32, bitcast=True)
    half = tl.where(exponent == 0, fraction.to(tl.float32) * 0.0009765625, normal)
    return tl.where(byte == 0x7F, 0.0, half)


@triton.jit
def four_words_tl(part):
    """Parts of 16 values follow one another."""
    return part * 4


IQ4_NL = VectorParts(
    q4_0_read_tl, iq4_nl_unpack_tl, two_words_tl,
    parts=2, pieces=2, stride=4, words=2, top=127, signed=True,
)  # fmt: skip
IQ4_XS = VectorParts(
    iq4_xs_read_tl, iq4_xs_unpack_tl, eight_words_tl,
    parts=8, pieces=1, stride=0, words=8, top=127, signed=True, align=4,
)  # fmt: skip
MXFP4 = VectorParts(
    mxfp4_read_tl, mxfp4_unpack_tl, two_words_tl,
    parts=2, pieces=2, stride=4, words=2, top=12, signed=True, align=4,
)  # fmt: skip
NVFP4 = VectorParts(
    nvfp4_read_tl, nvfp4_unpack_tl, four_words_tl,
    parts=4, pieces=1, stride=0, words=4, top=12, signed=True, align=4,
)  # fmt: skip
