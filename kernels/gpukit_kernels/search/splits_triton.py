"""The Triton twin of splits.py: one lane a group, its values and sums in tuples.

Of 32 values there are 33 * 34 / 2 pairs of bounds with two ways each, of 16 values 17 * 18 / 2 with
four, and whether one is better hangs on all before: a lane goes through them, some 20 operations
each and as many again that are masked, 2000 a weight. The lower bound is a loop, the upper one is
written out: sums are in registers, which no number chooses.
"""

from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search import splits

_UP = tl.constexpr(splits.UP)
_DOWN = tl.constexpr(splits.DOWN)
_LOWER = tl.constexpr(splits.LOWER)
_LOWEST = tl.constexpr(splits.LOWEST)


def partners(count: int) -> tuple[tuple[int, ...], ...]:
    """Of `splits.network` turn by turn with which place each exchanges, its own where with none."""
    turns: list[list[int]] = []
    for i, j in splits.network(count):
        if not turns or turns[-1][i] != i or turns[-1][j] != j:
            turns.append(list(range(count)))
        turns[-1][i], turns[-1][j] = j, i
    return tuple(map(tuple, turns))


_PARTNERS_16 = tl.constexpr(partners(16))
_PARTNERS_32 = tl.constexpr(partners(32))
_TURNS_16 = tl.constexpr(len(partners(16)))
_TURNS_32 = tl.constexpr(len(partners(32)))


@triton.jit
def sorted_tl(x, weights):
    """Tuples of lanes: values in ascending order, their weights, and where they stood, int32:
    splits.sorted_values."""
    SIZE: tl.constexpr = len(x)
    places = ()
    for i in tl.static_range(SIZE):
        places = places + (tl.zeros_like(x[0]).to(tl.int32) + i,)  # noqa: RUF005
    if SIZE == 16:
        for turn in tl.static_range(_TURNS_16):
            x, weights, places = _exchanged_tl(x, weights, places, _PARTNERS_16[turn])
    else:
        for turn in tl.static_range(_TURNS_32):
            x, weights, places = _exchanged_tl(x, weights, places, _PARTNERS_32[turn])
    return x, weights, places


@triton.jit
def _exchanged_tl(x, weights, places, PARTNERS: tl.constexpr):
    SIZE: tl.constexpr = len(x)
    moved_x = ()
    moved_weights = ()
    moved_places = ()
    for i in tl.static_range(SIZE):
        P: tl.constexpr = PARTNERS[i]
        LOW: tl.constexpr = min(i, P)
        HIGH: tl.constexpr = max(i, P)
        swap = x[HIGH] < x[LOW]
        swap = swap | ((x[HIGH] == x[LOW]) & (places[HIGH] < places[LOW]))
        moved_x = moved_x + (tl.where(swap, x[P], x[i]),)  # noqa: RUF005
        moved_weights = moved_weights + (tl.where(swap, weights[P], weights[i]),)  # noqa: RUF005
        moved_places = moved_places + (tl.where(swap, places[P], places[i]),)  # noqa: RUF005
    return moved_x, moved_weights, moved_places


@triton.jit
def below_tl(x, weights, places, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Two tuples of lanes, one more than `x`: the sums of weight * x and of weights below each
    bound, of the values which stood from FIRST to LAST - 1: splits.sums_below, sums_of_halves."""
    SIZE: tl.constexpr = len(x)
    sum_x, sum_weights = tl.zeros_like(x[0]), tl.zeros_like(x[0])
    found_x = (sum_x,)
    found_weights = (sum_weights,)
    for i in tl.static_range(SIZE):
        new_x, new_weights = sum_x + weights[i] * x[i], sum_weights + weights[i]
        if LAST - FIRST != SIZE:
            here = (places[i] >= FIRST) & (places[i] < LAST)
            new_x = tl.where(here, new_x, sum_x)
            new_weights = tl.where(here, new_weights, sum_weights)
        sum_x, sum_weights = new_x, new_weights
        found_x = found_x + (sum_x,)  # noqa: RUF005
        found_weights = found_weights + (sum_weights,)  # noqa: RUF005
    return found_x, found_weights


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
        for u in tl.static_range(COUNT):
            mid_x = x[u] - low_x
            mid_w = weights[u] - low_w
            high_x = x[COUNT - 1] - x[u]
            high_w = weights[COUNT - 1] - weights[u]
            square = mid_w * _UP[1] * _UP[1]
            for way in tl.static_range(2):
                N: tl.constexpr = _UP if way == 0 else _DOWN
                sum_qx = low_x * N[0] + mid_x * N[1] + high_x * N[2]
                sum_q2 = low_w * N[0] * N[0] + square + high_w * N[2] * N[2]
                named = _LOWER * lower + (2 * u + way)
                scale, best, number = _better_tl(
                    scale, best, number, sum_qx, sum_q2, named, lower <= u
                )
        lower = lower + 1
    return scale, number


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
        other_low_x, other_low_w = at_tl(other_x, lower), at_tl(other_weights, lower)
        for u in tl.static_range(COUNT):
            for way in tl.static_range(4):
                qx, q2 = _side_tl(low_x, low_w, x[u], weights[u], x[LAST], weights[LAST], way // 2)
                other_qx, other_q2 = _side_tl(
                    other_low_x,
                    other_low_w,
                    other_x[u],
                    other_weights[u],
                    other_x[LAST],
                    other_weights[LAST],
                    way % 2,
                )
                named = _LOWER * lower + (4 * u + way)
                scale, best, number = _better_tl(
                    scale, best, number, qx + other_qx, q2 + other_q2, named, lower <= u
                )
        lower = lower + 1
    return scale, number


@triton.jit
def _side_tl(low_x, low_w, x, w, total_x, total_w, DOWN: tl.constexpr):
    """Both sums of a half: those of splits._halves_step."""
    N: tl.constexpr = _DOWN if DOWN else _UP
    BELOW: tl.constexpr = N[0] * N[0] - N[1] * N[1]
    ABOVE: tl.constexpr = N[1] * N[1] - N[2] * N[2]
    whole = total_w * N[2] * N[2] + low_w * BELOW
    return total_x * N[2] - (low_x + x), whole + w * ABOVE


@triton.jit
def _better_tl(scale, best, number, sum_qx, sum_q2, named, allowed):
    better = allowed & (sum_q2 > 0.0) & (sum_qx * sum_qx > best * sum_q2)
    scale = tl.where(better, tl.div_rn(sum_qx, sum_q2), scale)
    return scale, tl.where(better, scale * sum_qx, best), tl.where(better, named, number)


@triton.jit
def bound_tl(x, places, index):
    """Value and place, int32, of the first that is not below the bound: splits._bound."""
    value = tl.zeros_like(x[0]) + float("inf")
    place = tl.zeros_like(index) + len(x)
    for i in tl.static_range(len(x)):
        value = tl.where(index == i, x[i], value)
        place = tl.where(index == i, places[i], place)
    return value, place
