"""The Triton twin of scale.py: one lane a group."""

from gpukit_kernels.bits_triton import divide_tl, nearest_level_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl, rows_tl
from gpukit_kernels.search import common
from gpukit_kernels.search.common_triton import importance_weights_tl, lanes_range_tl
from gpukit_kernels.search.refine_triton import refined_tl

_GROUP_EPS = tl.constexpr(common.GROUP_EPS)


@triton.jit
def scale_sums_tl(x, weights, inverse, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """Sums of w * x * level and w * level * level over the elements.

    `weights` is a tuple as `x` is, or None for w = x * x.
    """
    sum_lx = tl.zeros_like(inverse)
    sum_l2 = tl.zeros_like(inverse)
    for i in tl.static_range(SIZE):
        level = nearest_level_tl(inverse * x[i], -LEVELS, LEVELS - 1)
        w = x[i] * x[i] if weights is None else weights[i]
        sum_lx = sum_lx + w * x[i] * level
        sum_l2 = sum_l2 + w * level * level
    return sum_lx, sum_l2


@triton.jit
def scale_search_tl(x, weights, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """scale, inverse, float32 `[lanes]`, and which lanes are zero: scale.scale_search."""
    largest, magnitude = lanes_range_tl(x, SIZE)
    inverse = divide_tl(-1.0 * LEVELS, largest)
    scale = tl.zeros_like(largest)
    best = tl.zeros_like(largest)
    # The first try, by `inverse`, in the loop too: compilation takes long where sums stand twice.
    step = tl.zeros_like(largest) - 10.0
    for _ in range(19):
        first = step == -10.0
        tried = tl.where(first, inverse, tl.div_rn(-LEVELS - 0.1 * step, largest))
        # -9..9 without 0, which is where the search began.
        step = tl.where(step == -1.0, 1.0, step + 1.0)
        sum_lx, sum_l2 = scale_sums_tl(x, weights, tried, LEVELS, SIZE)
        better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
        better = tl.where(first, sum_l2 != 0.0, better)
        inverse = tl.where(better, tried, inverse)
        scale = tl.where(better, tl.div_rn(sum_lx, sum_l2), scale)
        best = tl.where(better | first, scale * sum_lx, best)
    zero = magnitude < _GROUP_EPS
    return tl.where(zero, 0.0, scale), inverse, zero


@triton.jit
def found_level_tl(v, inverse, zero, LEVELS: tl.constexpr):
    """float32: scale.found_levels of one element of each lane."""
    level = nearest_level_tl(v * inverse, -LEVELS, LEVELS - 1) + LEVELS
    return tl.where(zero, 0.0, level)


@triton.jit
def signed_search_tl(x, importance, mean_square, LEVELS: tl.constexpr):
    """d, float32 `[TILE]`, and levels, int32 `[TILE, 32]`, of float32 `[TILE, 32]`, weighted."""
    lanes = lanes_tl(x, 32)
    weights = lanes_tl(importance_weights_tl(x, importance, mean_square[:, None]), 32)
    scale, inverse, zero = scale_search_tl(lanes, weights, LEVELS, 32)
    # From the lanes: the tile need not be kept during the search.
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (found_level_tl(lanes[i], inverse, zero, LEVELS),)  # noqa: RUF005
    return scale, rows_tl(levels, 32).to(tl.int32)


@triton.jit
def refined_search_tl(x, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """scale, float32 `[lanes]`, and a tuple of SIZE levels: scale.refined_search."""
    largest, _ = lanes_range_tl(x, SIZE)
    inverse = divide_tl(-1.0 * LEVELS, largest)
    levels = ()
    for i in tl.static_range(SIZE):
        levels = levels + (nearest_level_tl(inverse * x[i], -LEVELS, LEVELS - 1),)  # noqa: RUF005
    sum_lx, sum_l2 = scale_sums_tl(x, None, inverse, LEVELS, SIZE)
    levels, sum_lx, sum_l2 = refined_tl(x, None, levels, sum_lx, sum_l2, -LEVELS, LEVELS - 1, SIZE)
    # The magnitude is made again: kept through the search it is a register too many.
    zero = tl.abs(largest) < _GROUP_EPS
    scale = tl.where(sum_l2 > 0.0, tl.div_rn(sum_lx, sum_l2), 0.0)
    moved = ()
    for i in tl.static_range(SIZE):
        moved = moved + (tl.where(zero, 0.0, levels[i] + LEVELS),)  # noqa: RUF005
    return tl.where(zero, 0.0, scale), moved
