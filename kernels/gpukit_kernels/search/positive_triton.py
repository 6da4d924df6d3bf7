"""The Triton twin of positive.py."""

from gpukit_kernels.bits_triton import divide_tl, nearest_int_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl, rows_tl
from gpukit_kernels.search import common
from gpukit_kernels.search.refine_triton import low_byte_tl, refined_tl

_GROUP_EPS = tl.constexpr(common.GROUP_EPS)


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
