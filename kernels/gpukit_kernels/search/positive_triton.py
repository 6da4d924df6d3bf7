"""The Triton twin of positive.py."""

from gpukit_kernels.bits_triton import divide_tl, nearest_int_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl, rows_tl
from gpukit_kernels.search import common, refine
from gpukit_kernels.search.groups_triton import (
    group_sum_tl,
    group_sums_tl,
    group_top_tl,
    picked_tl,
)
from gpukit_kernels.search.refine_triton import low_byte_tl, refined_tl

_GROUP_EPS = tl.constexpr(common.GROUP_EPS)
_SWEEPS = tl.constexpr(refine.SWEEPS)


@triton.jit
def positive_codes_tl(scale, low, weight, LEVELS: tl.constexpr):
    """Codes, int32 `[TILE, groups]` twice, and d, dmin: of scales and minima, weighted.

    positive.positive_search of both at once, one lane for each of a block's two lists.
    """
    TILE: tl.constexpr = scale.shape[0]
    GROUPS: tl.constexpr = scale.shape[1]
    both = tl.reshape(tl.permute(tl.join(scale, low), (0, 2, 1)), (TILE * 2, GROUPS))
    weights = tl.reshape(tl.permute(tl.join(weight, weight), (0, 2, 1)), (TILE * 2, GROUPS))
    codes, found = positive_search_tl(
        lanes_tl(both, GROUPS), lanes_tl(weights, GROUPS), LEVELS, GROUPS
    )
    codes = tl.reshape(rows_tl(codes, GROUPS), (TILE, 2, GROUPS)).to(tl.int32)
    scale_code, low_code = tl.split(tl.permute(codes, (0, 2, 1)))
    d, dmin = tl.split(tl.reshape(found, (TILE, 2)))
    return scale_code, low_code, d, dmin


@triton.jit
def positive_search_tl(x, weights, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """A tuple of SIZE codes and the scale, float32 lanes each: positive.positive_search."""
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


@triton.jit
def positive_scale_tl(x, weights, LEVELS: tl.constexpr, ROWS: tl.constexpr):
    """float32 `[R]`: the scale of `positive_search_tl`, one lane a row, ROWS of them a group.

    Groups of 32 in one lane each would take the registers of three tuples of 32.
    """
    top = group_top_tl(x, ROWS)
    top = tl.where(top < 0.0, 0.0, top)
    inverse = divide_tl(LEVELS * 1.0, top)
    least = tl.zeros_like(top)
    step = tl.zeros_like(top) - 5.0
    # The first try, by `inverse`, in the loop too; then -4 to 4 without 0.
    for _ in range(9):
        first = step == -5.0
        tried = tl.where(first, inverse, tl.div_rn(0.1 * step + LEVELS, top))
        step = tl.where(step == -1.0, 1.0, step + 1.0)
        scale = divide_tl(1.0, tried)
        terms = ()
        for k in tl.static_range(len(x)):
            nearest = nearest_int_tl(tried * x[k])
            level = tl.where(first, nearest & 0xFF, tl.minimum(nearest, LEVELS)).to(tl.float32)
            diff = x[k] - scale * level
            terms = terms + (weights[k] * diff * diff,)  # noqa: RUF005
        error = group_sum_tl(terms, ROWS)
        better = first | (error < least)
        least = tl.where(better, error, least)
        inverse = tl.where(better, tried, inverse)
    sum_lx, sum_l2 = _settled_tl(x, weights, inverse, LEVELS, ROWS)
    return tl.where((top < _GROUP_EPS) | ~(sum_l2 > 0.0), 0.0, tl.div_rn(sum_lx, sum_l2))


@triton.jit
def _settled_tl(x, weights, inverse, LEVELS: tl.constexpr, ROWS: tl.constexpr):
    """sum_lx and sum_l2, `[R]`: positive._settle and refine.refined."""
    a = ()
    b = ()
    levels = ()
    for k in tl.static_range(len(x)):
        level = tl.minimum(nearest_int_tl(inverse * x[k]), LEVELS).to(tl.float32)
        a = a + (weights[k] * x[k] * level,)  # noqa: RUF005
        b = b + (weights[k] * level * level,)  # noqa: RUF005
        levels = levels + (low_byte_tl(level),)  # noqa: RUF005
    sum_lx, sum_l2 = group_sums_tl(a, b, ROWS)
    row = tl.arange(0, inverse.shape[0]) % ROWS
    for turn in range(_SWEEPS * ROWS):
        here = row == turn % ROWS
        swept = ()
        for k in tl.static_range(len(x)):
            weighted = weights[k] * x[k]
            lx = sum_lx - weighted * levels[k]
            l2 = sum_l2 - weights[k] * levels[k] * levels[k]
            new = tl.minimum(nearest_int_tl(tl.div_rn(x[k] * l2, lx)), LEVELS).to(tl.float32)
            new_lx = lx + weighted * new
            new_l2 = l2 + weights[k] * new * new
            better = here & (lx > 0.0) & (new != levels[k]) & (l2 > 0.0)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            swept = swept + (tl.where(better, low_byte_tl(new), levels[k]),)  # noqa: RUF005
            sum_lx = tl.where(better, new_lx, sum_lx)
            sum_l2 = tl.where(better, new_l2, sum_l2)
        levels = swept
        one = tl.arange(0, ROWS)[None, :] == turn % ROWS
        sum_lx, sum_l2 = picked_tl(sum_lx, one, ROWS), picked_tl(sum_l2, one, ROWS)
    return sum_lx, sum_l2
