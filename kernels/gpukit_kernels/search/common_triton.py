"""The Triton twins of common.py.

Searches take one lane a group, its values in a tuple of lane vectors: a thread holds a group of 16
or 32 values in registers and adds along it in the order of the reference, so the bytes are the
reference's too.
"""

import torch

from gpukit_kernels.bits_triton import (
    divide_tl,
    inverse_tl,
    negated_tl,
    small_int_tl,
)
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import spread_tl

_MOST = tl.constexpr(torch.finfo(torch.float32).max)


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
    """d, float32 `[TILE]`, and a tuple of 32 levels, int32 `[TILE]`: search.signed_levels of a
    tuple of 32 lanes; LEVELS is a power of two."""
    largest, _ = lanes_range_tl(x, 32)
    d = largest * (-1.0 / LEVELS)
    inverse, half = finite_inverse_tl(d, LEVELS + 0.5)
    levels = ()
    for i in tl.static_range(32):
        level = small_int_tl(x[i] * inverse + half)
        levels = levels + (tl.minimum(level, 2 * LEVELS - 1),)  # noqa: RUF005
    return d, levels


@triton.jit
def offset_levels_tl(x, LEVELS: tl.constexpr):
    """d and low, float32 `[TILE]`, and a tuple of 32 levels, int32 `[TILE]`: search.offset_levels
    of a tuple of 32 lanes, zero where that does not fit."""
    low = tl.zeros_like(x[0]) + _MOST
    high = tl.zeros_like(x[0]) - _MOST
    for i in tl.static_range(32):
        low = tl.where(x[i] < low, x[i], low)
        high = tl.where(x[i] > high, x[i], high)
    d = divide_tl(high - low, tl.full((1,), LEVELS, tl.float32))
    inverse, half = finite_inverse_tl(d, 0.5)
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (small_int_tl((x[i] - low) * inverse + half),)  # noqa: RUF005
    return d, low, levels


@triton.jit
def finite_inverse_tl(d, ADDED: tl.constexpr):
    """float32: 1 / d and ADDED; both 0 where 1 / d is infinite, 1 / d 0 where d is 0.

    The C converts what an infinite 1 / d gives to the lowest int32, whose low byte is 0.
    """
    inverse = inverse_tl(d)
    finite = tl.abs(inverse) < float("inf")
    return tl.where(finite, inverse, 0.0), tl.where(finite, ADDED, 0.0)


@triton.jit
def lanes_range_tl(x, SIZE: tl.constexpr):
    """The first value of largest magnitude along a tuple of lanes, and its magnitude."""
    largest = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        largest = tl.where(tl.abs(x[i]) > tl.abs(largest), x[i], largest)
    return largest, tl.abs(largest)


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
