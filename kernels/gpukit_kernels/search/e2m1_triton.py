"""The Triton twin of e2m1.py."""

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search.codebook_triton import byte_words, pair_assembly
from gpukit_kernels.search.e2m1 import E2M1

_NUMBERS = tl.constexpr(E2M1)
# Four numbers a word, a byte each.
_LOWER = tl.constexpr(int.from_bytes(bytes(E2M1[:4]), "little"))
_UPPER = tl.constexpr(int.from_bytes(bytes(E2M1[4:]), "little"))
# All sixteen, as signed bytes; a number of zero has no sign.
_SIGNED = byte_words((*E2M1, *(-v for v in E2M1)))
E2M1_WORDS = tl.constexpr(_SIGNED)
E2M1_ASSEMBLY = tl.constexpr(pair_assembly(_SIGNED))


@triton.jit
def e2m1_values_tl(level):
    """float32: e2m1.e2m1_values of int32 0..15."""
    word = tl.where((level & 4) != 0, _UPPER, _LOWER)
    number = (word >> ((level & 3) * 8)) & 15
    return tl.where((level & 8) != 0, -number, number).to(tl.float32)


@triton.jit
def tried_e2m1_tl(x, scale):
    """int32 0..15: e2m1.nearest_e2m1."""
    magnitude = tl.abs(x)
    error = magnitude
    level = tl.zeros_like(x).to(tl.int32)
    for i in tl.static_range(1, 8):
        tried = tl.abs(_NUMBERS[i] * scale - magnitude)
        better = tried < error
        error = tl.where(better, tried, error)
        level = tl.where(better, i, level)
    return level | tl.where((x < 0.0) & (level != 0), 8, 0)


@triton.jit
def nearest_e2m1_tl(x, scale):
    """`tried_e2m1_tl`, by halves, where every error near the least is exact."""
    magnitude = tl.abs(x)
    four = magnitude > 3.5 * scale
    two = magnitude > tl.where(four, 7.0 * scale, 1.5 * scale)
    low = tl.where(two, 2.5 * scale, 0.5 * scale)
    one = magnitude > tl.where(four, tl.where(two, 10.0 * scale, 5.0 * scale), low)
    level = tl.where(four, 4, 0) + tl.where(two, 2, 0) + tl.where(one, 1, 0)
    return level + tl.where(x < -0.5 * scale, 8, 0)
