"""The Triton twins of refine.py and positive_search.py: one lane a group, elements in tuples."""

import triton
import triton.language as tl

from gpukit_kernels import refine, search
from gpukit_kernels.triton_bits import divide_tl, nearest_int_tl, nearest_level_tl

_GROUP_EPS = tl.constexpr(search.GROUP_EPS)
_SWEEPS = tl.constexpr(refine.SWEEPS)


@triton.jit
def refined_tl(
    x,
    weights,
    levels,
    sum_lx,
    sum_l2,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SIZE: tl.constexpr,
):
    """levels, a tuple of SIZE float32 lanes, sum_lx and sum_l2: refine.refined.

    A sweep that changes nothing is followed by others that change nothing either.
    """
    for _ in range(_SWEEPS):
        swept = ()
        for i in tl.static_range(SIZE):
            level = levels[i]
            weight = x[i] * x[i] if weights is None else weights[i]
            weighted = weight * x[i]
            lx = sum_lx - weighted * level
            l2 = sum_l2 - weight * level * level
            ratio = tl.div_rn(x[i] * l2, lx)
            new = (
                tl.minimum(nearest_int_tl(ratio), HIGH).to(tl.float32)
                if LOW is None
                else nearest_level_tl(ratio, LOW, HIGH)
            )
            new_lx = lx + weighted * new
            new_l2 = l2 + weight * new * new
            better = (lx > 0.0) & (new != level) & ((l2 if LOW is None else new_l2) > 0.0)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            kept = low_byte_tl(new) if LOW is None else new
            swept = swept + (tl.where(better, kept, level),)  # noqa: RUF005
            sum_lx = tl.where(better, new_lx, sum_lx)
            sum_l2 = tl.where(better, new_l2, sum_l2)
        levels = swept
    return levels, sum_lx, sum_l2


@triton.jit
def low_byte_tl(level):
    """float32: refine.low_byte."""
    return (level.to(tl.int32) & 0xFF).to(tl.float32)


@triton.jit
def positive_search_tl(x, weights, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """A tuple of SIZE codes and the scale, float32 lanes each: positive_search.positive_search."""
    top = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        top = tl.where(top > x[i], top, x[i])
    inverse = divide_tl(LEVELS * 1.0, top)
    error = tl.zeros_like(top)
    scale = divide_tl(1.0, inverse)
    for i in tl.static_range(SIZE):
        diff = x[i] - scale * (nearest_int_tl(inverse * x[i]) & 0xFF).to(tl.float32)
        error = error + weights[i] * diff * diff
    step = tl.zeros_like(top) - 4.0
    for _ in range(8):
        tried = tl.div_rn(0.1 * step + LEVELS, top)
        step = tl.where(step == -1.0, 1.0, step + 1.0)
        scale = divide_tl(1.0, tried)
        new_error = tl.zeros_like(top)
        for i in tl.static_range(SIZE):
            level = tl.minimum(nearest_int_tl(tried * x[i]), LEVELS).to(tl.float32)
            diff = x[i] - scale * level
            new_error = new_error + weights[i] * diff * diff
        better = new_error < error
        error = tl.where(better, new_error, error)
        inverse = tl.where(better, tried, inverse)
    sum_lx = tl.zeros_like(top)
    sum_l2 = tl.zeros_like(top)
    levels = ()
    for i in tl.static_range(SIZE):
        level = tl.minimum(nearest_int_tl(inverse * x[i]), LEVELS).to(tl.float32)
        sum_lx = sum_lx + weights[i] * x[i] * level
        sum_l2 = sum_l2 + weights[i] * level * level
        levels = levels + (low_byte_tl(level),)  # noqa: RUF005
    levels, sum_lx, sum_l2 = refined_tl(x, weights, levels, sum_lx, sum_l2, None, LEVELS, SIZE)
    zero = top < _GROUP_EPS
    codes = ()
    for i in tl.static_range(SIZE):
        codes = codes + (tl.where(zero, 0.0, levels[i]),)  # noqa: RUF005
    return codes, tl.where(zero | ~(sum_l2 > 0.0), 0.0, tl.div_rn(sum_lx, sum_l2))
