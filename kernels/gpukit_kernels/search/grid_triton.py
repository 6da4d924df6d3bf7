"""The Triton twin of grid.py: one lane a row of a group, which is four values or eight.

What a group has is the same in the lanes of all its rows, `[R]` as everything is, a block's rows
one after the other. A block of IQ3_XXS takes about 31 tries * 64 rows * 8 entries * 4 values * 8
operations, 2000 a weight, one of IQ2_S 19 * 32 * 16 * 8 * 5, 1500; a try adds its group's two sums
one value after the other, from row to row, 10 operations a weight and two reductions a row.
"""

from gpukit_kernels.bits_triton import divide_tl, half_bits_tl, nearest_int_tl, negated_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl
from gpukit_kernels.search import neighbours
from gpukit_kernels.search.common_triton import importance_weights_tl
from gpukit_kernels.search.groups_triton import (
    group_sum_tl,
    group_sums_tl,
    group_top_tl,
    last_not_above_tl,
    of_groups_tl,
)
from gpukit_kernels.search.near_triton import near_eight_tl, near_four_tl, odd_terms_tl

_OFF_GRID = tl.constexpr(neighbours.OFF_GRID)
_ROW_SHIFT = tl.constexpr(neighbours.ROW_SHIFT)
_NUMBERS = tl.constexpr((neighbours.OFF_GRID >> neighbours.ROW_SHIFT) - 1)


@triton.jit
def octet_signs_tl(x, weights, EVEN: tl.constexpr):
    """`x` without the signs that are stored, and those, int32 `[R]`, a bit a value: grid._signs of
    a tuple of eight lanes."""
    signs = tl.zeros_like(x[0]).to(tl.int32)
    count = signs
    at = signs
    least = weights[0] * x[0] * x[0]
    for i in tl.static_range(8):
        below = tl.where(x[i] >= 0.0, 0, 1)
        signs = signs | (below << i)
        count = count ^ below
        error = weights[i] * x[i] * x[i]
        at = tl.where(error < least, i, at)
        least = tl.where(error < least, error, least)
    found = ()
    for i in tl.static_range(8):
        v = tl.where(x[i] >= 0.0, x[i], negated_tl(x[i]))
        if EVEN:
            v = tl.where((count != 0) & (at == i), negated_tl(v), v)
        found = found + (v,)  # noqa: RUF005
    if EVEN:
        signs = signs ^ (count << at)
    return found, signs


@triton.jit
def fours_tl(eight):
    """A tuple of four `[2 * R]` of one of eight `[R]`: the first half of each, then the other."""
    found = ()
    for k in tl.static_range(4):
        pair = tl.join(eight[k], eight[k + 4])
        found = found + (tl.reshape(pair, (2 * pair.shape[0],)),)  # noqa: RUF005
    return found


@triton.jit
def _rows_tl(x, roots, inverse, scale, book):
    """int32 `[R]`: grid._rows."""
    SIZE: tl.constexpr = len(x)
    BITS: tl.constexpr = 2 if SIZE == 8 else 3
    TOP: tl.constexpr = 2 if SIZE == 8 else 7
    point = tl.zeros_like(inverse).to(tl.int32)
    for i in tl.static_range(SIZE):
        level = nearest_int_tl(0.5 * (inverse * x[i] - 1.0))
        point = point | (tl.minimum(tl.maximum(level, 0), TOP) << (BITS * i))
    if SIZE == 8:
        return near_eight_tl(point, odd_terms_tl(scale, x, roots), book)
    return near_four_tl(point, scale, x, roots, book)


@triton.jit
def _sums_tl(x, weights, entries, ROWS: tl.constexpr):
    """float32 `[R]` twice: grid._sums."""
    SIZE: tl.constexpr = len(x)
    BITS: tl.constexpr = 2 if SIZE == 8 else 3
    a = ()
    b = ()
    for k in tl.static_range(SIZE):
        number = (((entries >> (BITS * k)) & ((1 << BITS) - 1)) * 2 + 1).to(tl.float32)
        a = a + (weights[k] * x[k] * number,)  # noqa: RUF005
        b = b + (weights[k] * number * number,)  # noqa: RUF005
    return group_sums_tl(a, b, ROWS)


@triton.jit
def octets_tl(x):
    """A tuple of eight `[TILE * 32]` of `[TILE, 256]`: the values of each octet."""
    return lanes_tl(tl.reshape(x, (x.shape[0] * 32, 8)), 8)


@triton.jit
def octet_squares_tl(x):
    """The squares of a tuple of lanes: what values count where no importance is given."""
    found = ()
    for k in tl.static_range(8):
        found = found + (x[k] * x[k],)  # noqa: RUF005
    return found


@triton.jit
def octet_variance_tl(x, FACTOR: tl.constexpr):
    """float32 `[R]`: common.scaled_squares of the block, which has 32 lanes of octets."""
    return FACTOR * group_sum_tl(octet_squares_tl(x), 32) * (1.0 / 256)


@triton.jit
def octet_weights_tl(x, importance, FACTOR: tl.constexpr):
    """common.importance_weights of lanes of octets and importance `[TILE, 256]`; the variance is
    FACTOR times the mean square."""
    importance = octets_tl(importance)
    variance = octet_variance_tl(x, FACTOR)
    found = ()
    for k in tl.static_range(8):
        found = found + (importance_weights_tl(x[k], importance[k], variance),)  # noqa: RUF005
    return found


@triton.jit
def grid_encoded_tl(x, weights, book, FORM: tl.constexpr):
    """Scales, float32 `[TILE, groups]`, numbers of rows, int32 `[TILE, rows]`, signs, int32
    `[TILE, 32]`, and the groups' largest values: grid.grid_encoded of lanes of octets."""
    ROWS: tl.constexpr = FORM[1]
    HIGHEST: tl.constexpr = 5.0 if FORM[0] == 8 else 15.0
    x, signs = octet_signs_tl(x, weights, FORM[5])
    if FORM[0] == 4:
        x, weights = fours_tl(x), fours_tl(weights)
    top = group_top_tl(x, ROWS)
    scale = divide_tl(top, tl.full((1,), HIGHEST, tl.float32))
    scale, entries = grid_search_tl(x, weights, top, scale, book, FORM)
    return grid_ended_tl(scale, entries, signs, top, FORM)


@triton.jit
def grid_search_tl(x, weights, top, scale, book, FORM: tl.constexpr):
    """Scales, which may be below zero, and entries, `[R]`: grid.grid_search of tuples of four or
    eight lanes."""
    SIZE: tl.constexpr = FORM[0]
    ROWS: tl.constexpr = FORM[1]
    TRIES: tl.constexpr = FORM[2]
    HIGHEST: tl.constexpr = 5.0 if SIZE == 8 else 15.0
    roots = ()
    for k in tl.static_range(SIZE):
        roots = roots + (tl.sqrt_rn(weights[k]),)  # noqa: RUF005
    best = tl.zeros_like(top)
    # The first point is all zeros, and a row.
    found = tl.zeros_like(top).to(tl.int32) + tl.load(book)
    if FORM[6] == "any":
        found = found | _OFF_GRID
    entries = found
    number = tl.zeros_like(top) - TRIES
    # Once more at the end, by the scale that is found: compiled twice it takes twice as long.
    for _ in range(2 * TRIES + 2):
        last = number > TRIES
        stretch = FORM[3] * number + HIGHEST
        inverse = tl.div_rn(tl.where(last, 1.0, stretch), tl.where(last, scale, top))
        tried = tl.where(last, scale, divide_tl(1.0, inverse))
        entries = _rows_tl(x, roots, inverse, tried, book)
        sum_qx, sum_q2 = _sums_tl(x, weights, entries, ROWS)
        better = (sum_q2 > 0.0) & (sum_qx * sum_qx > best * sum_q2) & ~last
        scale = tl.where(better, tl.div_rn(sum_qx, sum_q2), scale)
        best = tl.where(better, scale * sum_qx, best)
        found = tl.where(better, entries, found)
        number = number + 1.0
    above = scale > 0.0
    off = found & _OFF_GRID
    groups = tl.reshape(off, (off.shape[0] // ROWS, ROWS))
    any_off = tl.broadcast_to(tl.max(groups, axis=1)[:, None], groups.shape)
    some = above & (tl.reshape(any_off, off.shape) != 0)
    if FORM[6] == "all":
        some = above
    found = tl.where(above & (off != 0) if FORM[6] == "off" else some, entries, found)
    sum_qx, sum_q2 = _sums_tl(x, weights, found, ROWS)
    return tl.where(some & (sum_q2 > 0.0), tl.div_rn(sum_qx, sum_q2), scale), found


@triton.jit
def grid_ended_tl(scale, entries, signs, top, FORM: tl.constexpr):
    """grid.grid_ended, and the groups' largest values; signs are of octets, the others of rows."""
    TILE: tl.constexpr = signs.shape[0] // 32
    ROWS: tl.constexpr = FORM[1]
    some = ~(top < FORM[4])
    rows = (entries >> _ROW_SHIFT) & _NUMBERS
    rows = tl.reshape(tl.where(some, rows, 0), (TILE, 256 // FORM[0]))
    # What signs are masked with, and then turned by.
    turned = tl.where(some, tl.where(scale < 0.0, 0x1FF, 0x100), 0)
    if FORM[0] == 4:
        turned = tl.max(tl.reshape(turned, (TILE * 32, 2)), axis=1)
    signs = tl.where(turned != 0, signs ^ (turned & 0xFF), 0)
    scale = tl.where(some, tl.abs(scale), 0.0)
    return (
        of_groups_tl(scale, TILE, ROWS),
        rows,
        tl.reshape(signs, (TILE, 32)),
        of_groups_tl(top, TILE, ROWS),
    )


@triton.jit
def grid_codes_tl(scale, FACTOR: tl.constexpr):
    """int32 `[TILE]` and `[TILE, groups]`, and whether any scale is not zero, `[TILE]`:
    grid.grid_codes of float32 `[TILE, groups]`."""
    top = last_not_above_tl(scale, scale != scale)
    some = top != 0.0
    d = divide_tl(top, tl.full((1,), 31.0, tl.float32))
    bits = tl.where(some, half_bits_tl(d * FACTOR).to(tl.int32), 0)
    code = nearest_int_tl(0.5 * (divide_tl(1.0, d)[:, None] * scale - 1.0))
    code = tl.minimum(tl.maximum(code, 0), 15)
    return bits, tl.where(some[:, None], code, 0), some


@triton.jit
def fields_tl(parts, BITS: tl.constexpr, COUNT: tl.constexpr):
    """int32 `[TILE, n / COUNT]`: fields of BITS bits, `[TILE, n]`, COUNT of them in each, the first
    lowest."""
    shape: tl.constexpr = (parts.shape[0], parts.shape[1] // COUNT, COUNT)
    return tl.sum(tl.reshape(parts, shape) << (BITS * tl.arange(0, COUNT))[None, None, :], axis=2)


@triton.jit
def signs_and_code_tl(signs, code):
    """int32 `[TILE, 8]`: the words of grid.signs_and_code."""
    return fields_tl(signs & 127, 7, 4) | (code << 28)
