"""The search of IQ1_S and IQ1_M: two bounds split the values of a group into the levels 0, 1 and 2.

Levels stand for -1, 0 and 1 times a scale, all an eighth up or an eighth down: of IQ1_S those of a
group, of IQ1_M those of each of its halves. Values are sorted, and with sums of what lies below
each bound every pair of bounds is tried. Tiles are `[elements, groups, lanes]` of float32, numbers
of places among them too.

Source: quantize_row_iq1_s_impl and quantize_row_iq1_m_impl in llama.cpp's ggml-quants.c.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.cpu.trace import is_tracing
from gpukit_kernels.stages import stage

# What levels 0, 1 and 2 stand for, an eighth up and an eighth down.
UP = (-0.875, 0.125, 1.125)
DOWN = (-1.125, -0.125, 0.875)
# Upper bounds that are tried in one step.
STEP = 8
# The number of a pair: 128 times the lower bound, the upper one times the ways of going up or down,
# and which of them: of IQ1_S whether down, of IQ1_M twice that of the first half and the second's.
LOWER = 128
LOWEST = float(-torch.finfo(torch.float32).max)


class Sorted(NamedTuple):
    """Values in ascending order, `[elements, groups, lanes]` each, and where they stood."""

    x: Tensor
    weights: Tensor
    places: Tensor


class Split(NamedTuple):
    """What has been accepted so far, `[groups, lanes]` each; `number` is that of the pair of
    bounds, -1 before there is one."""

    scale: Tensor
    best: Tensor
    number: Tensor


@stage
def sorted_values(x: Tensor, weights: Tensor) -> Sorted:
    """`x` and `weights` in the order of x; equal values, zeros of both signs too, keep theirs."""
    if not is_tracing():
        order = x.sort(dim=0, stable=True).indices
        return Sorted(x.gather(0, order), weights.gather(0, order), order.to(torch.float32))
    rows = [(x[i], weights[i], torch.full_like(x[i], float(i))) for i in range(len(x))]
    moved: set[int] = set()
    for i, j in network(len(x)):
        a, b = rows[i], rows[j]
        swap = b[0] < a[0]
        if {i, j} & moved:
            swap = swap | ((b[0] == a[0]) & (b[2] < a[2]))
        rows[i] = tuple(torch.where(swap, q, p) for p, q in zip(a, b, strict=True))
        rows[j] = tuple(torch.where(swap, p, q) for p, q in zip(a, b, strict=True))
        moved |= {i, j}
    return Sorted(*map(torch.stack, zip(*rows, strict=True)))


def network(count: int) -> Iterator[tuple[int, int]]:
    """The exchanges of Batcher's odd-even merge sort of `count` values, a power of two."""
    size = 1
    while size < count:
        apart = size
        while apart:
            for begin in range(apart % size, count - apart, 2 * apart):
                for i in range(begin, min(begin + apart, count - apart)):
                    if i // (2 * size) == (i + apart) // (2 * size):
                        yield i, i + apart
            apart //= 2
        size *= 2


class Below(NamedTuple):
    """Sums of the values below each bound, one after the other, `[elements + 1, ...]`."""

    x: Tensor  # weight * x
    weights: Tensor


@stage
def sums_below(values: Sorted) -> Below:
    """`[elements + 1, groups, lanes]` each."""
    return _added(list(zip(_products(values), values.weights, strict=True)), None)


@stage
def sums_of_halves(values: Sorted) -> Below:
    """`[elements + 1, 2, groups, lanes]` each: of what stood in the first half and in the second,
    everywhere but where it stood the sum stays."""
    half = len(values.x) / 2
    first = values.places < half
    both = [
        _added(list(zip(_products(values), values.weights, strict=True)), where)
        for where in (first, ~first)
    ]
    return Below(*(torch.stack(parts, dim=1) for parts in zip(*both, strict=True)))


def _products(values: Sorted) -> Tensor:
    return values.weights * values.x


def _added(terms: list[tuple[Tensor, Tensor]], where: Tensor | None) -> Below:
    sums = [[torch.zeros_like(terms[0][0])], [torch.zeros_like(terms[0][0])]]
    for i, pair in enumerate(terms):
        for found, term in zip(sums, pair, strict=True):
            total = found[-1] + term
            found.append(total if where is None else torch.where(where[i], total, found[-1]))
    return Below(*map(torch.stack, sums))


def best_split(below: Below, *, halves: bool) -> Split:
    """The best of all pairs of bounds, tried in the order of the C, which decides what is best."""
    best = _begin(below.x[0, 0] if halves else below.x[0])
    count, step = len(below.x), _halves_step if halves else _step
    for lower in range(count):
        for upper in range(lower, count, STEP):
            some = slice(upper, upper + STEP)
            best = step(
                Below(below.x[lower], below.weights[lower]),
                Below(below.x[some], below.weights[some]),
                Below(below.x[-1], below.weights[-1]),
                best,
                torch.tensor(float(LOWER * lower + (4 if halves else 2) * upper)),
            )
    return best


@stage
def _begin(zero: Tensor) -> Split:
    return Split(torch.zeros_like(zero), torch.full_like(zero, LOWEST), torch.full_like(zero, -1.0))


@stage
def _step(lower: Below, upper: Below, total: Below, best: Split, number: Tensor) -> Split:
    """Try one lower bound with several upper ones."""
    ends = [
        (lower.x * n[0], lower.weights * n[0] * n[0], (total.x - upper.x) * n[2],
         (total.weights - upper.weights) * n[2] * n[2], n[1])
        for n in (UP, DOWN)
    ]  # fmt: skip
    x, weights = upper.x - lower.x, upper.weights - lower.weights
    square = weights * UP[1] * UP[1]
    for i in range(len(x)):
        for way, (low_x, low_2, high_x, high_2, middle) in enumerate(ends):
            sum_qx = low_x + x[i] * middle + high_x[i]
            sum_q2 = low_2 + square[i] + high_2[i]
            best = _better(best, sum_qx, sum_q2, number + float(2 * i + way))
    return best


@stage
def _halves_step(lower: Below, upper: Below, total: Below, best: Split, number: Tensor) -> Split:
    """`_step` of sums `[2, groups, lanes]`: halves go up and down on their own."""
    x = lower.x + upper.x
    sides = []
    for n in (UP, DOWN):
        below, above = n[0] * n[0] - n[1] * n[1], n[1] * n[1] - n[2] * n[2]
        whole = total.weights * n[2] * n[2] + lower.weights * below
        sides.append((total.x * n[2] - x, whole + upper.weights * above))
    for i in range(len(x)):
        for way in range(4):
            (first_x, first_2), (second_x, second_2) = sides[way // 2], sides[way % 2]
            sum_qx = first_x[i, 0] + second_x[i, 1]
            sum_q2 = first_2[i, 0] + second_2[i, 1]
            best = _better(best, sum_qx, sum_q2, number + float(4 * i + way))
    return best


def _better(best: Split, sum_qx: Tensor, sum_q2: Tensor, number: Tensor) -> Split:
    better = (sum_q2 > 0) & (sum_qx * sum_qx > best.best * sum_q2)
    scale = torch.where(better, sum_qx / sum_q2, best.scale)
    return Split(
        scale,
        torch.where(better, scale * sum_qx, best.best),
        torch.where(better, number, best.number),
    )


def split_levels(x: Tensor, values: Sorted, number: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Levels, int32 shaped as `x`, of the bounds that `number` names, and which way, int32."""
    whole = number.to(torch.int32)
    lower = _bound(values, whole >> 7)
    upper = _bound(values, (whole & 127) >> (1 if ways == 2 else 2))
    levels = []
    for i in range(len(x)):
        above = [~((x[i] < v) | ((x[i] == v) & (i < place))) for v, place in (lower, upper)]
        levels.append(above[0].to(torch.int32) + above[1].to(torch.int32))
    return torch.stack(levels), whole & (ways - 1)


def _bound(values: Sorted, index: Tensor) -> tuple[Tensor, Tensor]:
    """Value and place of the first that is not below the bound; of one above all, infinity."""
    value = torch.full_like(values.x[0], torch.inf)
    place = torch.full_like(value, float(len(values.x)))
    for i in range(len(values.x)):
        here = index == i
        value = torch.where(here, values.x[i], value)
        place = torch.where(here, values.places[i], place)
    return value, place
