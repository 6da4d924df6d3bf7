"""The Triton twin of refine.py: one lane a group, elements in tuples."""

from gpukit_kernels.bits_triton import nearest_int_tl, nearest_level_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search import refine

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
