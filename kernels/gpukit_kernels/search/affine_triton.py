"""The Triton twin of affine.py."""

from gpukit_kernels.bits_triton import (
    clamped_level_tl,
    divide_tl,
    half_pair_tl,
    half_round_tl,
    load_half_tl,
    nearest_int_tl,
    nearest_level_tl,
    negated_tl,
    store_words32_tl,
)
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_words_tl, lanes_tl, rows_tl, spread_tl
from gpukit_kernels.scales6_triton import load_scales6_tl, scales6_words_tl, spilled6_tl
from gpukit_kernels.search.common_triton import block_squares_tl, importance_weights_tl
from gpukit_kernels.search.positive_triton import positive_codes_tl


@triton.jit
def weight_tl(x, weights, i: tl.constexpr, GIVEN: tl.constexpr):
    """The weight of element i: given for each in a tuple, or one lane vector added to |x|."""
    return weights[i] if GIVEN else weights + tl.abs(x[i])


@triton.jit
def affine_level_tl(v, LEVELS: tl.constexpr, GIVEN: tl.constexpr):
    """float32: the level at `v`; with given weights it is clamped before it is rounded."""
    return clamped_level_tl(v, LEVELS) if GIVEN else nearest_level_tl(v, 0, LEVELS)


@triton.jit
def affine_range_tl(x, weights, GIVEN: tl.constexpr, SIZE: tl.constexpr):
    """low, high, weight, weighted_x: affine.affine_range."""
    low = x[0]
    high = x[0]
    weight = weight_tl(x, weights, 0, GIVEN)
    weighted_x = weight * x[0]
    for i in tl.static_range(1, SIZE):
        low = tl.where(x[i] < low, x[i], low)
        high = tl.where(x[i] > high, x[i], high)
        w = weight_tl(x, weights, i, GIVEN)
        weight = weight + w
        weighted_x = weighted_x + w * x[i]
    return tl.where(low > 0.0, 0.0, low), high, weight, weighted_x


@triton.jit
def root_mean_square_tl(x, SIZE: tl.constexpr):
    """float32 `[lanes]`: affine.root_mean_square of a tuple of SIZE lanes."""
    squares = x[0] * x[0]
    for i in tl.static_range(1, SIZE):
        squares = squares + x[i] * x[i]
    # SIZE is a power of two, so its reciprocal divides exactly.
    return tl.sqrt_rn(squares * (1.0 / SIZE))


@triton.jit
def affine_error_tl(
    x,
    weights,
    inverse,
    shift,
    scale,
    low,
    LEVELS: tl.constexpr,
    SIZE: tl.constexpr,
    GIVEN: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """float32 `[lanes]`: the weighted error of a candidate, squared or absolute."""
    error = tl.zeros_like(low)
    for i in tl.static_range(SIZE):
        level = affine_level_tl(inverse * (x[i] - shift), LEVELS, GIVEN)
        diff = scale * level + low - x[i]
        diff = tl.abs(diff) if ABSOLUTE else diff * diff
        error = error + weight_tl(x, weights, i, GIVEN) * diff
    return error


@triton.jit
def affine_sums_tl(
    x,
    weights,
    inverse,
    shift,
    LEVELS: tl.constexpr,
    SIZE: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """Sums of w * level, w * level * level and w * level * x over the elements."""
    sum_l = tl.zeros_like(inverse)
    sum_l2 = tl.zeros_like(inverse)
    sum_xl = tl.zeros_like(inverse)
    for i in tl.static_range(SIZE):
        level = affine_level_tl(inverse * (x[i] - shift), LEVELS, GIVEN)
        weighted = weight_tl(x, weights, i, GIVEN) * level
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * level
        sum_xl = sum_xl + weighted * x[i]
    return sum_l, sum_l2, sum_xl


@triton.jit
def affine_search_tl(
    x,
    weights,
    LEVELS: tl.constexpr,
    START: tl.constexpr,
    DELTA: tl.constexpr,
    STEPS: tl.constexpr,
    SIZE: tl.constexpr,
    GIVEN: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """scale, low, inverse, shift, weight, float32 `[lanes]` each: affine.affine_search."""
    low, high, weight, weighted_x = affine_range_tl(x, weights, GIVEN, SIZE)
    inverse = divide_tl(LEVELS * 1.0, high - low)
    scale = divide_tl(1.0, inverse)
    if GIVEN:
        # Here the C does not clamp first: what is infinite comes out as level 0.
        inverse = tl.where(inverse == float("inf"), 0.0, inverse)
    flat = high == low
    shift = low
    error = affine_error_tl(x, weights, inverse, shift, scale, low, LEVELS, SIZE, GIVEN, ABSOLUTE)
    # A float counter: the loop variable is a Python int in the interpreter, a tensor when compiled.
    step = tl.zeros_like(low)
    for _ in range(STEPS + 1):
        tried = tl.div_rn((START + DELTA * step) + LEVELS, high - low)
        step = step + 1.0
        sum_l, sum_l2, sum_xl = affine_sums_tl(x, weights, tried, low, LEVELS, SIZE, GIVEN)
        determinant = weight * sum_l2 - sum_l * sum_l
        new_scale = tl.div_rn(weight * sum_xl - weighted_x * sum_l, determinant)
        new_low = tl.div_rn(sum_l2 * weighted_x - sum_l * sum_xl, determinant)
        above = new_low > 0.0
        new_scale = tl.where(above, tl.div_rn(sum_xl, sum_l2), new_scale)
        new_low = tl.where(above, 0.0, new_low)
        new_error = affine_error_tl(
            x, weights, tried, low, new_scale, new_low, LEVELS, SIZE, GIVEN, ABSOLUTE
        )
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
        weight,
    )


@triton.jit
def offset_search_tl(x, importance, mean_square, LEVELS: tl.constexpr):
    """d and low, float32 `[TILE]`, and int32 `[TILE, 32]` of float32 `[TILE, 32]`, weighted."""
    lanes = lanes_tl(x, 32)
    weights = lanes_tl(importance_weights_tl(x, importance, mean_square[:, None]), 32)
    scale, low, inverse, shift, _ = affine_search_tl(
        lanes, weights, LEVELS, -0.9, 0.05, 36, 32, True, False
    )
    level = clamped_level_tl(inverse[:, None] * (x - shift[:, None]), LEVELS)
    return scale, low, level.to(tl.int32)


@triton.jit
def read_levels_tl(
    x,
    step,
    offset,
    inverse,
    shift,
    LEVELS: tl.constexpr,
    SIZE: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """A tuple of SIZE int32 lanes: affine.read_levels."""
    levels = ()
    for i in tl.static_range(SIZE):
        found = affine_level_tl(inverse * (x[i] - shift), LEVELS, GIVEN)
        level = nearest_level_tl(tl.div_rn(x[i] + offset, step), 0, LEVELS)
        levels = levels + (tl.where(step != 0.0, level, found).to(tl.int32),)  # noqa: RUF005
    return levels


@triton.jit
def top_codes_tl(values, TOP: tl.constexpr):
    """Codes, int32 `[TILE, groups]`, and d, float32 `[TILE]`: affine.top_codes."""
    # Also where a NaN is: it is not above zero.
    top = tl.max(tl.where(values > 0.0, values, 0.0), axis=1)
    inverse = tl.where(top > 0.0, divide_tl(TOP * 1.0, top), 0.0)
    code = nearest_int_tl(inverse[:, None] * values)
    return code, divide_tl(top, tl.full((1,), TOP, tl.float32))


@triton.jit
def affine_encode_tl(
    x,
    importance,
    out,
    at,
    mask,
    LEVELS: tl.constexpr,
    START: tl.constexpr,
    DELTA: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Store d, dmin and the scales of Q4_K and Q5_K; the levels of `[TILE, 256]` as words.

    `importance` is None or `[TILE, 256]`. The result is int32 `[TILE * 8, 8]`: word i of a group
    holds its levels 4 i to 4 i + 3, a byte each.
    """
    TILE: tl.constexpr = x.shape[0]
    lanes: tl.constexpr = TILE * 8
    groups = lanes_tl(tl.reshape(x, (lanes, 32)), 32)
    if importance is None:
        weights = root_mean_square_tl(groups, 32)
        scale, low, inverse, shift, weight = affine_search_tl(
            groups, weights, LEVELS, START, DELTA, STEPS, 32, False, False
        )
        scale6, d = top_codes_tl(tl.reshape(scale, (TILE, 8)), 63)
        low6, dmin = top_codes_tl(tl.reshape(negated_tl(low), (TILE, 8)), 63)
        # The C goes through uint8 before it takes the minimum.
        scale6 = tl.minimum(scale6 & 0xFF, 63)
        low6 = tl.minimum(low6 & 0xFF, 63)
    else:
        variance = 2.0 * block_squares_tl(groups, TILE, 8, 32) * (1.0 / 256)
        weights = importance_weights_tl(x, importance, variance[:, None])
        weights = lanes_tl(tl.reshape(weights, (lanes, 32)), 32)
        scale, low, inverse, shift, weight = affine_search_tl(
            groups, weights, LEVELS, START, DELTA, STEPS, 32, True, False
        )
        scale6, low6, d, dmin = positive_codes_tl(
            tl.reshape(scale, (TILE, 8)),
            tl.reshape(negated_tl(low), (TILE, 8)),
            tl.reshape(weight, (TILE, 8)),
            63,
        )
        if LEVELS == 31:
            # Q5_K, unlike Q4_K, takes the minimum here too, so that nothing spills.
            scale6, low6 = tl.minimum(scale6, 63), tl.minimum(low6, 63)
        else:
            scale6, low6 = spilled6_tl(scale6, low6)
    head = (half_pair_tl(d, dmin),) + scales6_words_tl(scale6, low6)  # noqa: RUF005
    store_words32_tl(out, at, rows_tl(head, 4), mask)
    step = spread_tl(half_round_tl(d), TILE, 8) * tl.reshape(scale6, (lanes,)).to(tl.float32)
    offset = spread_tl(half_round_tl(dmin), TILE, 8) * tl.reshape(low6, (lanes,)).to(tl.float32)
    levels = read_levels_tl(
        groups, step, offset, inverse, shift, LEVELS, 32, importance is not None
    )
    return byte_words_tl(levels, 8)


@triton.jit
def nibble_words_tl(words, TILE: tl.constexpr):
    """int32 `[TILE, 32]`: group 2 g in the low halves of bytes, 2 g + 1 in the high ones.

    Of int32 `[TILE * 8, 8]` with levels as `affine_encode_tl` has them, up to 15.
    """
    pairs = tl.reshape(words, (TILE, 4, 2, 8)) << (tl.arange(0, 2)[None, None, :, None] * 4)
    return tl.reshape(tl.sum(pairs, axis=2), (TILE, 32))


@triton.jit
def affine_values_tl(blocks, at, levels, mask):
    """float32 `[TILE, 256]`: Q4_K and Q5_K blocks at `at` with int32 levels `[TILE, 8, 32]`."""
    scale6, low6 = load_scales6_tl(blocks, at + 4, mask)
    step = load_half_tl(blocks, at, mask)[:, None] * scale6.to(tl.float32)
    offset = load_half_tl(blocks, at + 2, mask)[:, None] * low6.to(tl.float32)
    values = step[:, :, None] * levels.to(tl.float32) - offset[:, :, None]
    return tl.reshape(values, (at.shape[0], 256))
