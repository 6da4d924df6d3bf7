"""The Triton twins of search.py: one lane a group, its values in a tuple of lane vectors.

The order of every addition is the reference's, so the bytes are too.
"""

import triton
import triton.language as tl

from gpukit_kernels.triton_bits import (
    first_largest_tl,
    half_round_tl,
    inverse_tl,
    nearest_int_tl,
    nearest_level_tl,
    spread_tl,
    truncate_tl,
)


@triton.jit
def signed_levels_tl(values, block, mask, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """d, float32 `[TILE]`, and levels, int32 `[TILE, 32]`: search.signed_levels."""
    element = tl.arange(0, 32)[None, :]  # [1, 32]
    x = tl.load(values + block[:, None] * 32 + element, mask=mask[:, None], other=0.0)
    x = x.to(tl.float32)  # [TILE, 32]
    largest = first_largest_tl(x, 32)
    d = tl.div_rn(largest, tl.full(largest.shape, -LEVELS, tl.float32))
    level = truncate_tl(x * inverse_tl(d)[:, None] + (LEVELS + 0.5))
    # Through int8, as the C does.
    level = (level << 24) >> 24
    return d, tl.minimum(level, 2 * LEVELS - 1)


@triton.jit
def load_group_tl(values, group, mask, SIZE: tl.constexpr):
    """The `SIZE` values of each group as a tuple of float32 `[lanes]`."""
    x = ()
    for i in tl.static_range(SIZE):
        x = x + (tl.load(values + group * SIZE + i, mask=mask, other=0.0).to(tl.float32),)
    return x


@triton.jit
def affine_search_tl(
    x,
    LEVELS: tl.constexpr,
    START: tl.constexpr,
    DELTA: tl.constexpr,
    STEPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """scale, low, inverse, shift, float32 `[lanes]` each: search.affine_search."""
    squares = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        squares = squares + x[i] * x[i]
    mean = tl.sqrt_rn(tl.div_rn(squares, tl.full(squares.shape, SIZE, tl.float32)))
    low = x[0]
    high = x[0]
    weight = mean + tl.abs(x[0])
    weighted_x = weight * x[0]
    for i in tl.static_range(1, SIZE):
        low = tl.where(x[i] < low, x[i], low)
        high = tl.where(x[i] > high, x[i], high)
        w = mean + tl.abs(x[i])
        weight = weight + w
        weighted_x = weighted_x + w * x[i]
    low = tl.where(low > 0.0, 0.0, low)
    flat = high == low
    inverse = tl.div_rn(tl.full(low.shape, LEVELS, tl.float32), high - low)
    scale = tl.div_rn(tl.full(low.shape, 1.0, tl.float32), inverse)
    shift = low
    error = tl.zeros_like(low)
    for i in tl.static_range(SIZE):
        level = nearest_level_tl(inverse * (x[i] - low), 0, LEVELS)
        diff = scale * level + low - x[i]
        error = error + (mean + tl.abs(x[i])) * (diff * diff)
    step = tl.full((), 0.0, tl.float32)
    for _ in range(STEPS + 1):
        stretch = (START + DELTA * step) + LEVELS
        step = step + 1.0
        tried = tl.div_rn(tl.zeros_like(low) + stretch, high - low)
        sum_l = tl.zeros_like(low)
        sum_l2 = tl.zeros_like(low)
        sum_xl = tl.zeros_like(low)
        for i in tl.static_range(SIZE):
            level = nearest_level_tl(tried * (x[i] - low), 0, LEVELS)
            wl = (mean + tl.abs(x[i])) * level
            sum_l = sum_l + wl
            sum_l2 = sum_l2 + wl * level
            sum_xl = sum_xl + wl * x[i]
        determinant = weight * sum_l2 - sum_l * sum_l
        new_scale = tl.div_rn(weight * sum_xl - weighted_x * sum_l, determinant)
        new_low = tl.div_rn(sum_l2 * weighted_x - sum_l * sum_xl, determinant)
        above = new_low > 0.0
        new_scale = tl.where(above, tl.div_rn(sum_xl, sum_l2), new_scale)
        new_low = tl.where(above, 0.0, new_low)
        new_error = tl.zeros_like(low)
        for i in tl.static_range(SIZE):
            level = nearest_level_tl(tried * (x[i] - low), 0, LEVELS)
            diff = new_scale * level + new_low - x[i]
            new_error = new_error + (mean + tl.abs(x[i])) * (diff * diff)
        better = (determinant > 0.0) & (new_error < error)
        shift = tl.where(better, low, shift)
        inverse = tl.where(better, tried, inverse)
        error = tl.where(better, new_error, error)
        scale = tl.where(better, new_scale, scale)
        low = tl.where(better, new_low, low)
    return (
        tl.where(flat, 0.0, scale),
        tl.where(flat, high, low),
        tl.where(flat, 0.0, inverse),
        tl.where(flat, 0.0, shift),
    )


@triton.jit
def six_bits_tl(values, TILE: tl.constexpr, GROUPS: tl.constexpr):
    """Six-bit codes, int32 `[TILE * GROUPS]`, and the scale that they stand on, float32 `[TILE]`."""
    by_block = tl.reshape(values, (TILE, GROUPS))
    top = tl.maximum(tl.max(by_block, 1), 0.0)
    inverse = tl.where(top > 0.0, tl.div_rn(tl.full(top.shape, 63.0, tl.float32), top), 0.0)
    code = nearest_int_tl(spread_tl(inverse, TILE, GROUPS) * values) & 0xFF
    return tl.minimum(code, 63), tl.div_rn(top, tl.full(top.shape, 63.0, tl.float32))


@triton.jit
def store_scales6_tl(out, scale6, low6, mask, TILE: tl.constexpr):
    """bits.pack_scales6 at bytes 4 to 15 of the blocks at `out` `[TILE]`."""
    scale = tl.permute(tl.reshape(scale6, (TILE, 2, 4)), (0, 2, 1))
    low = tl.permute(tl.reshape(low6, (TILE, 2, 4)), (0, 2, 1))
    scale_a, scale_b = tl.split(scale)  # [TILE, 4]
    low_a, low_b = tl.split(low)
    at = out[:, None] + 4 + tl.arange(0, 4)[None, :]
    masked = mask[:, None]
    tl.store(at, (scale_a | ((scale_b >> 4) << 6)).to(tl.uint8), mask=masked)
    tl.store(at + 4, (low_a | ((low_b >> 4) << 6)).to(tl.uint8), mask=masked)
    tl.store(at + 8, ((scale_b & 15) | ((low_b & 15) << 4)).to(tl.uint8), mask=masked)


@triton.jit
def affine_level_tl(x, step, offset, inverse, shift, LEVELS: tl.constexpr):
    """int32 `[lanes]`: the level of one value, from the search where the step is zero."""
    found = nearest_level_tl(inverse * (x - shift), 0, LEVELS)
    level = nearest_level_tl(tl.div_rn(x + offset, step), 0, LEVELS)
    return tl.where(step != 0.0, level, found).to(tl.int32)


@triton.jit
def steps_tl(d, code, TILE: tl.constexpr, GROUPS: tl.constexpr):
    """float32 `[TILE * GROUPS]`: what a reader will multiply levels with."""
    return spread_tl(half_round_tl(d), TILE, GROUPS) * code.to(tl.float32)


@triton.jit
def scales6_at_tl(pointer, group, mask):
    """Scale and min of `group`, float32 each, from the twelve bytes at `pointer`."""
    upper = group >= 4
    low4 = group % 4
    first = tl.load(pointer + low4, mask=mask, other=0).to(tl.int32)
    second = tl.load(pointer + 4 + low4, mask=mask, other=0).to(tl.int32)
    third = tl.load(pointer + 8 + low4, mask=mask, other=0).to(tl.int32)
    scale = tl.where(upper, (third & 15) | ((first >> 6) << 4), first & 63)
    low = tl.where(upper, (third >> 4) | ((second >> 6) << 4), second & 63)
    return scale.to(tl.float32), low.to(tl.float32)


@triton.jit
def scale_search_tl(x, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """scale, inverse, float32 `[lanes]`, and which lanes are zero: search.scale_search."""
    largest = tl.zeros_like(x[0])
    magnitude = tl.zeros_like(x[0])
    for i in tl.static_range(SIZE):
        a = tl.abs(x[i])
        larger = a > magnitude
        magnitude = tl.where(larger, a, magnitude)
        largest = tl.where(larger, x[i], largest)
    inverse = tl.div_rn(tl.full(largest.shape, -LEVELS, tl.float32), largest)
    sum_lx, sum_l2 = scale_sums_tl(x, inverse, LEVELS, SIZE)
    scale = tl.where(sum_l2 != 0.0, tl.div_rn(sum_lx, sum_l2), 0.0)
    best = scale * sum_lx
    step = tl.full((), -9.0, tl.float32)
    for _ in range(18):
        tried = tl.div_rn(tl.zeros_like(largest) - (LEVELS + 0.1 * step), largest)
        step = tl.where(step == -1.0, 1.0, step + 1.0)
        sum_lx, sum_l2 = scale_sums_tl(x, tried, LEVELS, SIZE)
        better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
        new_scale = tl.div_rn(sum_lx, sum_l2)
        inverse = tl.where(better, tried, inverse)
        best = tl.where(better, new_scale * sum_lx, best)
        scale = tl.where(better, new_scale, scale)
    zero = magnitude < 1e-15
    return tl.where(zero, 0.0, scale), inverse, zero


@triton.jit
def scale_sums_tl(x, inverse, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """Sums of w * x * level and w * level * level over the elements, w = x * x."""
    sum_lx = tl.zeros_like(inverse)
    sum_l2 = tl.zeros_like(inverse)
    for i in tl.static_range(SIZE):
        level = nearest_level_tl(inverse * x[i], -LEVELS, LEVELS - 1)
        w = x[i] * x[i]
        sum_lx = sum_lx + w * x[i] * level
        sum_l2 = sum_l2 + w * level * level
    return sum_lx, sum_l2
