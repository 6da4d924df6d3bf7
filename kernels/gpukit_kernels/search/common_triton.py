"""The Triton twins of common.py.

Searches take one lane a group, its values in a tuple of lane vectors: a thread holds a group of 16
or 32 values in registers and adds along it in the order of the reference, so the bytes are the
reference's too.
"""

from gpukit_kernels.bits_triton import (
    divide_tl,
    inverse_tl,
    negated_tl,
    signed_byte_tl,
    truncate_tl,
)
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import spread_tl


@triton.jit
def first_largest_tl(x, N: tl.constexpr):
    """float32 `[TILE]` of `[TILE, N]`: search.first_largest along the row."""
    # A NaN is never larger.
    magnitude = tl.where(x == x, tl.abs(x), 0.0)
    largest = tl.max(magnitude, axis=1)
    # The sign of the first that is as large: twice the distance from the end, plus the sign.
    place = 2 * (N - tl.arange(0, N))[None, :] + (x < 0.0).to(tl.int32)
    first = tl.max(tl.where(magnitude == largest[:, None], place, 0), axis=1)
    return tl.where((first & 1) == 1, negated_tl(largest), largest)


@triton.jit
def signed_levels_tl(x, LEVELS: tl.constexpr):
    """d, float32 `[TILE]`, and levels, int32 `[TILE, 32]`: search.signed_levels of `[TILE, 32]`."""
    d = divide_tl(first_largest_tl(x, 32), tl.full((1,), -LEVELS, tl.float32))
    level = signed_byte_tl(truncate_tl(x * inverse_tl(d)[:, None] + (LEVELS + 0.5)))
    return d, tl.minimum(level, 2 * LEVELS - 1)


@triton.jit
def offset_levels_tl(x, levels: tl.constexpr):
    """float32 `[TILE]` twice and int32 `[TILE, N]`: search.offset_levels along the rows."""
    N: tl.constexpr = x.shape[1]
    element = tl.arange(0, N)[None, :]
    # The first of the least values: its zero keeps its sign.
    first = tl.min(tl.where(x == tl.min(x, axis=1)[:, None], element, N), axis=1)
    bits = tl.where(element == first[:, None], x.to(tl.int32, bitcast=True), 0)
    low = tl.sum(bits, axis=1).to(tl.float32, bitcast=True)
    d = divide_tl(tl.max(x, axis=1) - low, tl.full(low.shape, levels, tl.float32))
    return d, low, truncate_tl((x - low[:, None]) * inverse_tl(d)[:, None] + 0.5)


@triton.jit
def lanes_range_tl(x, SIZE: tl.constexpr):
    """The first value of largest magnitude along a tuple of lanes, and its magnitude."""
    largest = tl.zeros_like(x[0])
    magnitude = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        a = tl.abs(x[i])
        larger = a > magnitude
        magnitude = tl.where(larger, a, magnitude)
        largest = tl.where(larger, x[i], largest)
    return largest, magnitude


@triton.jit
def squares_tl(x, SIZE: tl.constexpr):
    """float32 `[lanes]`: search.squares of a tuple of SIZE lanes."""
    total = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        total = total + x[i] * x[i]
    return total


@triton.jit
def block_squares_tl(x, TILE: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """float32 `[TILE]`: search.squares over blocks of GROUPS groups, a tuple of SIZE lanes.

    One order, so one group after the other: each lane adds to what the group before came to.
    """
    group = tl.arange(0, GROUPS)[None, :]
    total = tl.zeros((TILE,), tl.float32)
    for g in range(GROUPS):
        lane = spread_tl(total, TILE, GROUPS)
        for i in tl.static_range(SIZE):
            lane = lane + x[i] * x[i]
        total = tl.sum(tl.where(group == g, tl.reshape(lane, (TILE, GROUPS)), 0.0), axis=1)
    return total


@triton.jit
def importance_weights_tl(x, importance, variance):
    """float32 of the shape of `x` and `importance`: search.importance_weights.

    Mostly of tiles that then become lanes: lanes of both and of roots are registers too many.
    """
    return importance * tl.sqrt_rn(variance + x * x)


@triton.jit
def total_tl(x, SIZE: tl.constexpr):
    """float32 `[lanes]`: search.total of a tuple of SIZE lanes."""
    total = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        total = total + x[i]
    return total
