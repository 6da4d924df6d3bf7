"""The Triton twin of splits.py: values are ranked with one lane an octet, bounds are tried with one
lane a group, whose sums are a tuple.

Of 32 values there are 33 * 34 / 2 pairs of bounds with two ways each, of 16 values 17 * 18 / 2 with
four, and whether one is better hangs on all before: a lane goes through them, some 40 operations
each, 1500 a weight. The lower bound is a loop; the upper one is written out, since no number can
choose among registers.
"""

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl
from gpukit_kernels.search import splits
from gpukit_kernels.search.groups_triton import picked_tl

_UP = tl.constexpr(splits.UP)
_DOWN = tl.constexpr(splits.DOWN)
_LOWER = tl.constexpr(splits.LOWER)
_LOWEST = tl.constexpr(splits.LOWEST)


@triton.jit
def ranks_tl(x, ROWS: tl.constexpr):
    """A tuple of eight int32 `[R]`: how many values of a group of ROWS octets stand before each in
    the order of splits.sorted_values."""
    octet = tl.arange(0, x[0].shape[0]) % ROWS
    ranks = ()
    for _ in tl.static_range(8):
        ranks = ranks + (tl.zeros_like(octet),)  # noqa: RUF005
    for r in range(ROWS):
        for j in tl.static_range(8):
            v = picked_tl(x[j], tl.arange(0, ROWS)[None, :] == r, ROWS)
            more = ()
            for i in tl.static_range(8):
                first = (octet > r) | ((octet == r) & (j < i))
                before = (v < x[i]) | ((v == x[i]) & first)
                more = more + (ranks[i] + before.to(tl.int32),)  # noqa: RUF005
            ranks = more
    return ranks


@triton.jit
def below_tl(x, weights, ranks, ROWS: tl.constexpr, HALVES: tl.constexpr):
    """float32 `[groups, values]` twice: the sums of weight * x and of weights up to each value of
    the order; with HALVES `[R, values]`, of each octet: splits.sums_below, sums_of_halves."""
    SIZE: tl.constexpr = 8 * ROWS
    L: tl.constexpr = x[0].shape[0] if HALVES else x[0].shape[0] // ROWS
    place = tl.arange(0, SIZE)[None, :]
    sum_x, sum_w = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    found_x, found_w = tl.zeros((L, SIZE), tl.float32), tl.zeros((L, SIZE), tl.float32)
    for s in range(SIZE):
        # One of a group's values is not zero: sums are as if it were alone.
        term_x, term_w = tl.zeros_like(x[0]), tl.zeros_like(x[0])
        for k in tl.static_range(8):
            term_x = tl.where(ranks[k] == s, weights[k] * x[k], term_x)
            term_w = tl.where(ranks[k] == s, weights[k], term_w)
        if not HALVES:
            term_x = tl.sum(tl.reshape(term_x, (L, ROWS)), axis=1)
            term_w = tl.sum(tl.reshape(term_w, (L, ROWS)), axis=1)
        sum_x, sum_w = sum_x + term_x, sum_w + term_w
        found_x = tl.where(place == s, sum_x[:, None], found_x)
        found_w = tl.where(place == s, sum_w[:, None], found_w)
    return found_x, found_w


@triton.jit
def bounds_tl(below, SIZE: tl.constexpr):
    """A tuple of SIZE + 1 lanes of `[L, SIZE]`: zeros, and its columns."""
    lanes = lanes_tl(below, SIZE)
    return (tl.zeros_like(lanes[0]),) + lanes  # noqa: RUF005


@triton.jit
def at_tl(lanes, index):
    """Of a tuple of lanes that with the number `index`, int32; the last where there is none."""
    found = lanes[len(lanes) - 1]
    for i in tl.static_range(len(lanes) - 1):
        found = tl.where(index == i, lanes[i], found)
    return found


@triton.jit
def best_split_tl(x, weights):
    """Scale, float32, and number of the best pair of bounds, int32: splits.best_split of the sums
    of groups of 32."""
    COUNT: tl.constexpr = len(x)
    scale = tl.zeros_like(x[0])
    best = scale + _LOWEST
    lower = scale.to(tl.int32)
    number = lower - 1
    for _ in range(COUNT):
        low_x, low_w = at_tl(x, lower), at_tl(weights, lower)
        total_x = _anew_tl(x[COUNT - 1], number)
        total_w = _anew_tl(weights[COUNT - 1], number)
        for u in tl.static_range(COUNT):
            mid_x = x[u] - low_x
            mid_w = weights[u] - low_w
            high_x = total_x - x[u]
            high_w = total_w - weights[u]
            square = mid_w * _UP[1] * _UP[1]
            for way in tl.static_range(2):
                sum_qx = _sum_tl(low_x, mid_x, high_x, way)
                sum_q2 = _square_sum_tl(low_w, square, high_w, way)
                named = _LOWER * lower + (2 * u + way)
                scale, best, number = _better_tl(
                    scale, best, number, sum_qx, sum_q2, named, lower <= u
                )
        lower = lower + 1
    return scale, number


@triton.jit
def _anew_tl(v, number):
    """`v`, by a choice that the loop has a part in, whose `number` is -1 at least: what hangs on
    upper bounds alone would be made before the loop, and be kept in registers for all of them."""
    return tl.where(number < -1, 0.0, v)


@triton.jit
def _sum_tl(low, middle, high, DOWN: tl.constexpr):
    N: tl.constexpr = _DOWN if DOWN else _UP
    return low * N[0] + middle * N[1] + high * N[2]


@triton.jit
def _square_sum_tl(low, middle, high, DOWN: tl.constexpr):
    N: tl.constexpr = _DOWN if DOWN else _UP
    return low * N[0] * N[0] + middle + high * N[2] * N[2]


@triton.jit
def best_halves_tl(x, weights, other_x, other_weights):
    """`best_split_tl` of groups of 16, of the sums of each half."""
    COUNT: tl.constexpr = len(x)
    LAST: tl.constexpr = len(x) - 1
    scale = tl.zeros_like(x[0])
    best = scale + _LOWEST
    lower = scale.to(tl.int32)
    number = lower - 1
    for _ in range(COUNT):
        low_x, low_w = at_tl(x, lower), at_tl(weights, lower)
        begun = number
        other_low_x, other_low_w = at_tl(other_x, lower), at_tl(other_weights, lower)
        for u in tl.static_range(COUNT):
            for way in tl.static_range(4):
                qx, q2 = _side_tl(
                    low_x, low_w, x[u], weights[u], x[LAST], weights[LAST], begun, way // 2
                )
                other_qx, other_q2 = _side_tl(
                    other_low_x,
                    other_low_w,
                    other_x[u],
                    other_weights[u],
                    other_x[LAST],
                    other_weights[LAST],
                    begun,
                    way % 2,
                )
                named = _LOWER * lower + (4 * u + way)
                scale, best, number = _better_tl(
                    scale, best, number, qx + other_qx, q2 + other_q2, named, lower <= u
                )
        lower = lower + 1
    return scale, number


@triton.jit
def _side_tl(low_x, low_w, x, w, total_x, total_w, number, DOWN: tl.constexpr):
    """Both sums of a half: those of splits._halves_step."""
    N: tl.constexpr = _DOWN if DOWN else _UP
    BELOW: tl.constexpr = N[0] * N[0] - N[1] * N[1]
    ABOVE: tl.constexpr = N[1] * N[1] - N[2] * N[2]
    whole = total_w * N[2] * N[2] + low_w * BELOW
    return total_x * N[2] - (low_x + x), whole + w * _anew_tl(tl.zeros_like(w) + ABOVE, number)


@triton.jit
def _better_tl(scale, best, number, sum_qx, sum_q2, named, allowed):
    better = allowed & (sum_q2 > 0.0) & (sum_qx * sum_qx > best * sum_q2)
    scale = tl.where(better, tl.div_rn(sum_qx, sum_q2), scale)
    return scale, tl.where(better, scale * sum_qx, best), tl.where(better, named, number)
