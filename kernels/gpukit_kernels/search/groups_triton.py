"""Sums and maxima of groups whose rows are lanes, in Triton.

A lane has a row of four values or eight. A group has ROWS rows side by side, and what is found of
it is the same in the lanes of them all, `[R]` as everything is. Sums go from one value to the next,
from row to row: in each turn one lane goes on, and the others take over what it has.
"""

from gpukit_kernels.jit import tl, triton


@triton.jit
def picked_tl(v, here, ROWS: tl.constexpr):
    """float32 `[R]`: in each group of ROWS lanes that of `v` where `here`, `[1, ROWS]`, is true."""
    rows = tl.reshape(v, (v.shape[0] // ROWS, ROWS))
    one = tl.sum(tl.where(here, rows, 0.0), axis=1)
    return tl.reshape(tl.broadcast_to(one[:, None], rows.shape), v.shape)


@triton.jit
def group_sum_tl(a, ROWS: tl.constexpr):
    """float32 `[R]`: the sum over each group of a tuple of lanes."""
    row = tl.arange(0, ROWS)[None, :]
    total = tl.zeros_like(a[0])
    for r in range(ROWS):
        for k in tl.static_range(len(a)):
            total = total + a[k]
        total = picked_tl(total, row == r, ROWS)
    return total


@triton.jit
def group_sums_tl(a, b, ROWS: tl.constexpr):
    """float32 `[R]` twice: the sums over each group of two tuples of lanes, one value after the
    other, from row to row."""
    row = tl.arange(0, ROWS)[None, :]
    total_a, total_b = tl.zeros_like(a[0]), tl.zeros_like(a[0])
    for r in range(ROWS):
        for k in tl.static_range(len(a)):
            total_a = total_a + a[k]
            total_b = total_b + b[k]
        total_a = picked_tl(total_a, row == r, ROWS)
        total_b = picked_tl(total_b, row == r, ROWS)
    return total_a, total_b


@triton.jit
def last_not_above_tl(v, anew):
    """float32 `[L]` of `[L, N]`: the largest along the row as `top > v ? top : v` finds it, which
    forgets what came before a NaN, and where `anew` is true."""
    place = tl.arange(0, v.shape[1])[None, :]
    begin = tl.max(tl.where(anew, place, 0), axis=1)
    seen = (place >= begin[:, None]) & (v == v)
    largest = tl.max(tl.where(seen, v, float("-inf")), axis=1)
    last = tl.max(tl.where((place == v.shape[1] - 1) & (v != v), 1, 0), axis=1)
    return tl.where(last != 0, float("nan"), largest)


@triton.jit
def group_top_tl(x, ROWS: tl.constexpr):
    """float32 `[R]`: grid.grid_top of a tuple of lanes."""
    shape: tl.constexpr = (x[0].shape[0] // ROWS, ROWS)
    top = x[0]
    anew = tl.where(top == top, 0, 1)
    for k in tl.static_range(1, len(x)):
        top = tl.where(top > x[k], top, x[k])
        anew = tl.where(x[k] == x[k], anew, 1)
    found = last_not_above_tl(tl.reshape(top, shape), tl.reshape(anew, shape) != 0)
    return tl.reshape(tl.broadcast_to(found[:, None], shape), top.shape)


@triton.jit
def of_groups_tl(v, TILE: tl.constexpr, ROWS: tl.constexpr):
    """float32 `[TILE, groups]` of `[R]`, which is the same in each group's rows."""
    rows = tl.reshape(v, (TILE, v.shape[0] // TILE // ROWS, ROWS))
    return tl.sum(tl.where(tl.arange(0, ROWS)[None, None, :] == 0, rows, 0.0), axis=2)
