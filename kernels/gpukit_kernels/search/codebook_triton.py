"""The Triton twin of codebook.py: one lane a group."""

from collections.abc import Sequence

from gpukit_kernels.bits_triton import INTERPRETED, divide_tl, negated_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_words_tl
from gpukit_kernels.search import codebook, common
from gpukit_kernels.search.common_triton import lanes_range_tl

_GROUP_EPS = tl.constexpr(common.GROUP_EPS)
_TRIES = tl.constexpr(codebook.TRIES)
_LOWEST = tl.constexpr(codebook.CODEBOOK[0])
_CODEBOOK = tl.constexpr(codebook.CODEBOOK)
_MIDDLES = tl.constexpr(codebook.MIDDLES)


def byte_words(numbers: Sequence[int]) -> tuple[int, ...]:
    """Four of `numbers` a word, as signed bytes, the first lowest."""
    packed = bytes(v & 0xFF for v in numbers)
    return tuple(
        int.from_bytes(packed[i : i + 4], "little", signed=True) for i in range(0, len(packed), 4)
    )


def pair_assembly(words: Sequence[int]) -> str:
    """PTX that looks up the low four bits of four bytes, and the high ones, in four `words`.

    A permutation chooses one of eight bytes by three bits of each four; the fourth chooses between
    two permutations.
    """
    first, second, third, fourth = (f"0x{word & 0xFFFFFFFF:08x}" for word in words)
    return f"""{{
        .reg .b32 low, pick, a, b, c, d;
        and.b32 low, $2, 0x77777777;
        shr.u32 pick, $2, 1;
        and.b32 pick, pick, 0x44444444;
        or.b32 pick, pick, 0x32103210;
        prmt.b32 a, {first}, {second}, low;
        prmt.b32 b, {third}, {fourth}, low;
        prmt.b32 c, a, b, pick;
        shr.u32 low, low, 16;
        shr.u32 pick, pick, 16;
        prmt.b32 a, {first}, {second}, low;
        prmt.b32 b, {third}, {fourth}, low;
        prmt.b32 d, a, b, pick;
        prmt.b32 $0, c, d, 0x6420;
        prmt.b32 $1, c, d, 0x7531;
    }}"""


CODEBOOK_WORDS = tl.constexpr(byte_words(codebook.CODEBOOK))
CODEBOOK_ASSEMBLY = tl.constexpr(pair_assembly(byte_words(codebook.CODEBOOK)))


@triton.jit
def nearest_number_tl(v):
    """float32: the number of the codebook nearest to `v`; a NaN gets the last."""
    number = tl.zeros_like(v) + _CODEBOOK[15]
    for k in tl.static_range(15):
        number = number - tl.where(v < _MIDDLES[k], _CODEBOOK[k + 1] - _CODEBOOK[k] + 0.0, 0.0)
    return number


@triton.jit
def nearest_code_tl(v):
    """int32 0..15: codebook.nearest_code, by halves."""
    eight = v < _MIDDLES[7]
    four = v < tl.where(eight, _MIDDLES[3], _MIDDLES[11])
    low, high = tl.where(four, _MIDDLES[1], _MIDDLES[5]), tl.where(four, _MIDDLES[9], _MIDDLES[13])
    two = v < tl.where(eight, low, high)
    low = tl.where(
        four, tl.where(two, _MIDDLES[0], _MIDDLES[2]), tl.where(two, _MIDDLES[4], _MIDDLES[6])
    )
    high = tl.where(
        four, tl.where(two, _MIDDLES[8], _MIDDLES[10]), tl.where(two, _MIDDLES[12], _MIDDLES[14])
    )
    one = v < tl.where(eight, low, high)
    code = tl.where(eight, 7, 15) - tl.where(four, 4, 0)
    return code - tl.where(two, 2, 0) - tl.where(one, 1, 0)


@triton.jit
def codebook_words_tl(x, inverse):
    """int32 `[lanes, 4]`: bits.pack_nibbles of the codes of `inverse * x`, four bytes a word.

    `x` is a tuple of 32 lanes: a tile of it need not be kept during the search.
    """
    packed = ()
    for i in tl.static_range(16):
        low = nearest_code_tl(inverse * x[i])
        packed = packed + (low | (nearest_code_tl(inverse * x[16 + i]) << 4),)  # noqa: RUF005
    return byte_words_tl(packed, 4)


@triton.jit
def codebook_values_tl(code):
    """float32: codebook.codebook_values of int32 0..15."""
    return _looked_up_tl(code, CODEBOOK_WORDS).to(tl.float32)


@triton.jit
def _looked_up_tl(code, WORDS: tl.constexpr):
    """int32: the signed byte number `code`, 0..15, of four WORDS."""
    low = tl.where((code & 4) != 0, WORDS[1], WORDS[0])
    high = tl.where((code & 4) != 0, WORDS[3], WORDS[2])
    word = tl.where((code & 8) != 0, high, low)
    return (word << (24 - (code & 3) * 8)) >> 24


@triton.jit
def codebook_pair_tl(byte, WORDS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """float32 twice: of bytes, int32 0..255, what WORDS, sixteen signed bytes, hold at the low
    four bits and at the high ones; ASSEMBLY is `pair_assembly` of WORDS."""
    if INTERPRETED:
        low, high = _looked_up_tl(byte & 15, WORDS), _looked_up_tl(byte >> 4, WORDS)
    else:
        low, high = tl.inline_asm_elementwise(
            ASSEMBLY,
            "=&r,=&r,r",
            [byte.to(tl.int8)],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def codebook_sums_tl(x, weights, inverse, SIZE: tl.constexpr):
    """Sums of w * number * x and w * number * number; `weights` None means x * x."""
    sum_qx = tl.zeros_like(inverse)
    sum_q2 = tl.zeros_like(inverse)
    for i in tl.static_range(SIZE):
        number = nearest_number_tl(inverse * x[i])
        w = x[i] * x[i] if weights is None else weights[i]
        sum_qx = sum_qx + w * number * x[i]
        sum_q2 = sum_q2 + w * number * number
    return sum_qx, sum_q2


@triton.jit
def codebook_search_tl(x, weights, SIZE: tl.constexpr):
    """float32 `[lanes]`: codebook.codebook_search."""
    largest, _ = lanes_range_tl(x, SIZE)
    inverse = divide_tl(1.0, tl.div_rn(negated_tl(largest), tl.zeros_like(largest) + _LOWEST))
    scale = tl.zeros_like(largest)
    best = tl.zeros_like(largest)
    # The first try, by `inverse`, in the loop too: compilation takes long where sums stand twice.
    number = tl.zeros_like(largest) + (_LOWEST - _TRIES - 1)
    for _ in range(2 * _TRIES + 2):
        first = number < _LOWEST - _TRIES
        tried = tl.where(first, inverse, tl.div_rn(number, largest))
        sum_qx, sum_q2 = codebook_sums_tl(x, weights, tried, SIZE)
        number = number + 1.0
        better = (sum_q2 > 0.0) & (first | (sum_qx * sum_qx > best * sum_q2))
        scale = tl.where(better, tl.div_rn(sum_qx, sum_q2), scale)
        best = tl.where(better | first, scale * sum_qx, best)
    # The magnitude is made again: kept through the search it is a register too many.
    return tl.where(tl.abs(largest) < _GROUP_EPS, 0.0, scale)
