"""The Triton twin of octets.py: splits with one lane a group, rows with one lane an octet."""

from gpukit_kernels.bits_triton import divide_tl, nearest_level_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import spread_tl
from gpukit_kernels.search import neighbours, splits
from gpukit_kernels.search.groups_triton import group_sums_tl, group_top_tl, last_not_above_tl
from gpukit_kernels.search.near_triton import near_eight_tl, shifted_terms_tl
from gpukit_kernels.search.splits_triton import (
    below_tl,
    best_halves_tl,
    best_split_tl,
    bounds_tl,
    ranks_tl,
)

_OFF_GRID = tl.constexpr(neighbours.OFF_GRID)
_ROW_SHIFT = tl.constexpr(neighbours.ROW_SHIFT)
_NUMBERS = tl.constexpr((neighbours.OFF_GRID >> neighbours.ROW_SHIFT) - 1)
_UP = tl.constexpr(splits.UP[0])
_DOWN = tl.constexpr(splits.DOWN[0])


@triton.jit
def lowest_tl(down):
    """float32: what level 0 stands for."""
    return tl.where(down == 0, _UP, _DOWN)


@triton.jit
def octets_found_tl(x, weights, book, SIZE: tl.constexpr, LEAST: tl.constexpr):
    """Entries, whether an octet goes an eighth down, int32, and the scale, `[R]` each:
    octets.octets_of of tuples of eight lanes, in groups of SIZE values; 16 have halves."""
    ROWS: tl.constexpr = SIZE // 8
    ranks = ranks_tl(x, ROWS)
    scale, number = _split_tl(x, weights, ranks, SIZE)
    low, high = number >> 7, (number & 127) >> (2 if SIZE == 16 else 1)
    octet = tl.arange(0, scale.shape[0]) % ROWS
    # A scale below zero turns levels and ways around.
    way = number & (2 * 32 // SIZE - 1)
    way = tl.where(scale < 0.0, 2 * 32 // SIZE - 1 - way, way)
    down = (way >> (1 - octet)) & 1 if SIZE == 16 else way
    lowest = lowest_tl(down)
    point = tl.zeros_like(down)
    for i in tl.static_range(8):
        level = (ranks[i] >= low).to(tl.int32) + (ranks[i] >= high).to(tl.int32)
        point = point | (tl.where(scale < 0.0, 2 - level, level) << (2 * i))
    scale = tl.abs(scale)
    entries = near_eight_tl(point, shifted_terms_tl(scale, lowest, x, weights), book)
    sum_qx, sum_q2 = octet_sums_tl(x, weights, entries, lowest, 1.0, ROWS)
    shape: tl.constexpr = (scale.shape[0] // ROWS, ROWS)
    away = tl.max(tl.reshape(entries & _OFF_GRID, shape), axis=1)
    fits = (spread_tl(away, scale.shape[0] // ROWS, ROWS) != 0) & (sum_qx > 0.0) & (sum_q2 > 0.0)
    scale = tl.where(fits, tl.div_rn(sum_qx, sum_q2), scale)
    magnitudes = ()
    for i in tl.static_range(8):
        magnitudes = magnitudes + (tl.abs(x[i]),)  # noqa: RUF005
    none = (number < 0) | (group_top_tl(magnitudes, ROWS) < LEAST)
    return tl.where(none, 0, entries), tl.where(none, 0, down), tl.where(none, 0.0, scale)


@triton.jit
def _split_tl(x, weights, ranks, SIZE: tl.constexpr):
    """Scale and number of each group's best split, `[R]`."""
    ROWS: tl.constexpr = SIZE // 8
    groups: tl.constexpr = x[0].shape[0] // ROWS
    sums_x, sums_w = below_tl(x, weights, ranks, ROWS, SIZE == 16)
    if SIZE == 16:
        first_x, second_x = tl.split(tl.permute(tl.reshape(sums_x, (groups, 2, 16)), (0, 2, 1)))
        first_w, second_w = tl.split(tl.permute(tl.reshape(sums_w, (groups, 2, 16)), (0, 2, 1)))
        scale, number = best_halves_tl(
            bounds_tl(first_x, 16),
            bounds_tl(first_w, 16),
            bounds_tl(second_x, 16),
            bounds_tl(second_w, 16),
        )
    else:
        scale, number = best_split_tl(bounds_tl(sums_x, 32), bounds_tl(sums_w, 32))
    return spread_tl(scale, groups, ROWS), spread_tl(number, groups, ROWS)


@triton.jit
def octet_sums_tl(x, weights, entries, lowest, factor, ROWS: tl.constexpr):
    """float32 `[R]` twice: over ROWS octets the sums of weight * number * x and of weight * number
    * number, numbers being what levels stand for times `factor`."""
    a = ()
    b = ()
    for i in tl.static_range(8):
        number = (((entries >> (2 * i)) & 3).to(tl.float32) + lowest) * factor
        a = a + (weights[i] * number * x[i],)  # noqa: RUF005
        b = b + (weights[i] * number * number,)  # noqa: RUF005
    return group_sums_tl(a, b, ROWS)


@triton.jit
def scale_codes_tl(scale):
    """int32 `[TILE, groups]`, d, float32 `[TILE]`, and whether any scale is not zero, `[TILE]`:
    octets.scale_codes of float32 `[TILE, groups]`."""
    top = last_not_above_tl(scale, scale != scale)
    d = divide_tl(top, tl.full((1,), 15.0, tl.float32))
    codes = nearest_level_tl(0.5 * (divide_tl(1.0, d)[:, None] * scale - 1.0), 0, 7)
    return codes.to(tl.int32), d, top != 0.0


@triton.jit
def row_numbers_tl(entries):
    """int32: which rows of the codebook."""
    return (entries >> _ROW_SHIFT) & _NUMBERS
