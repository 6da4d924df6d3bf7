"""The Triton twins of search.py: one lane a group, its values in a tuple of lane vectors.

A thread holds a group of 16 or 32 values in registers and adds along it in the order of the
reference, so the bytes are the reference's too.
"""

import triton
import triton.language as tl

from gpukit_kernels import search
from gpukit_kernels.triton_bits import (
    divide_tl,
    half_bits_tl,
    half_round_tl,
    inverse_tl,
    lanes_tl,
    load_half_tl,
    load_scales6_tl,
    nearest_int_tl,
    nearest_level_tl,
    signed_byte_tl,
    spread_tl,
    store_scales6_tl,
    store_word16_tl,
    truncate_tl,
)

_GROUP_EPS = tl.constexpr(search.GROUP_EPS)


@triton.jit
def first_largest_tl(x, N: tl.constexpr):
    """float32 `[TILE]` of `[TILE, N]`: search.first_largest along the row."""
    # A NaN is never larger.
    magnitude = tl.where(x == x, tl.abs(x), 0.0)
    largest = tl.max(magnitude, axis=1)
    # The sign of the first that is as large: twice the distance from the end, plus the sign.
    place = 2 * (N - tl.arange(0, N))[None, :] + (x < 0.0).to(tl.int32)
    first = tl.max(tl.where(magnitude == largest[:, None], place, 0), axis=1)
    return tl.where((first & 1) == 1, -largest, largest)


@triton.jit
def signed_levels_tl(x, LEVELS: tl.constexpr):
    """d, float32 `[TILE]`, and levels, int32 `[TILE, 32]`: search.signed_levels of `[TILE, 32]`."""
    d = divide_tl(first_largest_tl(x, 32), tl.full((1,), -LEVELS, tl.float32))
    level = signed_byte_tl(truncate_tl(x * inverse_tl(d)[:, None] + (LEVELS + 0.5)))
    return d, tl.minimum(level, 2 * LEVELS - 1)


@triton.jit
def affine_begin_tl(x, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """mean, low, high, weight, weighted_x, inverse, scale: search.affine_begin, not its error."""
    squares = x[0] * x[0]
    for i in tl.static_range(1, SIZE):
        squares = squares + x[i] * x[i]
    # SIZE is a power of two, so its reciprocal divides exactly.
    mean = tl.sqrt_rn(squares * (1.0 / SIZE))
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
    inverse = divide_tl(LEVELS * 1.0, high - low)
    return mean, low, high, weight, weighted_x, inverse, divide_tl(1.0, inverse)


@triton.jit
def affine_error_tl(x, mean, inverse, shift, scale, low, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """float32 `[lanes]`: the weighted squared error of a candidate."""
    error = tl.zeros_like(low)
    for i in tl.static_range(SIZE):
        level = nearest_level_tl(inverse * (x[i] - shift), 0, LEVELS)
        diff = scale * level + low - x[i]
        error = error + (mean + tl.abs(x[i])) * (diff * diff)
    return error


@triton.jit
def affine_sums_tl(x, mean, inverse, shift, LEVELS: tl.constexpr, SIZE: tl.constexpr):
    """Sums of w * level, w * level * level and w * level * x over the elements."""
    sum_l = tl.zeros_like(mean)
    sum_l2 = tl.zeros_like(mean)
    sum_xl = tl.zeros_like(mean)
    for i in tl.static_range(SIZE):
        level = nearest_level_tl(inverse * (x[i] - shift), 0, LEVELS)
        weighted = (mean + tl.abs(x[i])) * level
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * level
        sum_xl = sum_xl + weighted * x[i]
    return sum_l, sum_l2, sum_xl


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
    mean, low, high, weight, weighted_x, inverse, scale = affine_begin_tl(x, LEVELS, SIZE)
    flat = high == low
    shift = low
    error = affine_error_tl(x, mean, inverse, shift, scale, low, LEVELS, SIZE)
    # A float counter: the loop variable is a Python int in the interpreter, a tensor when compiled.
    step = tl.zeros_like(mean)
    for _ in range(STEPS + 1):
        tried = tl.div_rn((START + DELTA * step) + LEVELS, high - low)
        step = step + 1.0
        sum_l, sum_l2, sum_xl = affine_sums_tl(x, mean, tried, low, LEVELS, SIZE)
        determinant = weight * sum_l2 - sum_l * sum_l
        new_scale = tl.div_rn(weight * sum_xl - weighted_x * sum_l, determinant)
        new_low = tl.div_rn(sum_l2 * weighted_x - sum_l * sum_xl, determinant)
        above = new_low > 0.0
        new_scale = tl.where(above, tl.div_rn(sum_xl, sum_l2), new_scale)
        new_low = tl.where(above, 0.0, new_low)
        new_error = affine_error_tl(x, mean, tried, low, new_scale, new_low, LEVELS, SIZE)
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
def six_bits_tl(values):
    """Codes, int32 `[TILE, 8]`, and d, float32 `[TILE]`: the six-bit scales of search.py."""
    # Also where a NaN is: it is not above zero.
    top = tl.max(tl.where(values > 0.0, values, 0.0), axis=1)
    inverse = tl.where(top > 0.0, divide_tl(63.0, top), 0.0)
    # The C goes through uint8 before it takes the minimum.
    code = nearest_int_tl(inverse[:, None] * values) & 0xFF
    return tl.minimum(code, 63), divide_tl(top, tl.full((1,), 63.0, tl.float32))


@triton.jit
def affine_encode_tl(
    x,
    out,
    at,
    mask,
    LEVELS: tl.constexpr,
    START: tl.constexpr,
    DELTA: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Store d, dmin and the scales of Q4_K and Q5_K; the levels of `[TILE, 256]` as words.

    A tuple of eight int32 `[TILE, 8]`: word i holds levels 4 i to 4 i + 3, a byte each, of a group.
    """
    TILE: tl.constexpr = x.shape[0]
    lanes: tl.constexpr = TILE * 8
    groups = lanes_tl(tl.reshape(x, (lanes, 32)), 32)
    scale, low, inverse, shift = affine_search_tl(groups, LEVELS, START, DELTA, STEPS, 32)
    scale6, d = six_bits_tl(tl.reshape(scale, (TILE, 8)))
    low6, dmin = six_bits_tl(tl.reshape(-low, (TILE, 8)))
    store_word16_tl(out, at, half_bits_tl(d), mask)
    store_word16_tl(out, at + 2, half_bits_tl(dmin), mask)
    store_scales6_tl(out, at + 4, scale6, low6, mask)
    step = spread_tl(half_round_tl(d), TILE, 8) * tl.reshape(scale6, (lanes,)).to(tl.float32)
    offset = spread_tl(half_round_tl(dmin), TILE, 8) * tl.reshape(low6, (lanes,)).to(tl.float32)
    words = ()
    for i in tl.static_range(8):
        word = tl.zeros((lanes,), tl.int32)
        for k in tl.static_range(4):
            v = groups[4 * i + k]
            found = nearest_level_tl(inverse * (v - shift), 0, LEVELS)
            level = nearest_level_tl(tl.div_rn(v + offset, step), 0, LEVELS)
            level = tl.where(step != 0.0, level, found)
            word = word | (level.to(tl.int32) << (8 * k))
        words = words + (tl.reshape(word, (TILE, 8)),)  # noqa: RUF005
    return words


@triton.jit
def affine_values_tl(blocks, at, levels, mask):
    """float32 `[TILE, 256]`: Q4_K and Q5_K blocks at `at` with int32 levels `[TILE, 8, 32]`."""
    scale6, low6 = load_scales6_tl(blocks, at + 4, mask)
    step = load_half_tl(blocks, at, mask)[:, None] * scale6.to(tl.float32)
    offset = load_half_tl(blocks, at + 2, mask)[:, None] * low6.to(tl.float32)
    values = step[:, :, None] * levels.to(tl.float32) - offset[:, :, None]
    return tl.reshape(values, (at.shape[0], 256))


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
    inverse = divide_tl(-1.0 * LEVELS, largest)
    sum_lx, sum_l2 = scale_sums_tl(x, inverse, LEVELS, SIZE)
    scale = tl.where(sum_l2 != 0.0, tl.div_rn(sum_lx, sum_l2), 0.0)
    best = scale * sum_lx
    step = tl.zeros_like(largest) - 9.0
    for _ in range(18):
        tried = tl.div_rn(-(LEVELS + 0.1 * step), largest)
        # -9..9 without 0, which is where the search began.
        step = tl.where(step == -1.0, 1.0, step + 1.0)
        sum_lx, sum_l2 = scale_sums_tl(x, tried, LEVELS, SIZE)
        better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
        new_scale = tl.div_rn(sum_lx, sum_l2)
        inverse = tl.where(better, tried, inverse)
        best = tl.where(better, new_scale * sum_lx, best)
        scale = tl.where(better, new_scale, scale)
    zero = magnitude < _GROUP_EPS
    return tl.where(zero, 0.0, scale), inverse, zero


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
