"""The search of IQ1_S: two bounds split the values of a group into the levels 0, 1 and 2.

Levels stand for -1, 0 and 1 times a scale, all an eighth higher or lower. Values are sorted, and
with sums of what lies below each bound every pair of bounds is tried. Tiles are `[elements, groups,
lanes]` of float32, numbers of places among them too.

Source: quantize_row_iq1_s_impl in llama.cpp's ggml-quants.c.
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
# Pairs of bounds that are tried in one step.
STEP = 8
# The number of a pair: the lower bound, the upper one, and whether levels are an eighth down.
LOWER, UPPER = 128, 2
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
    for i, j in network(len(x)):
        a, b = rows[i], rows[j]
        swap = (b[0] < a[0]) | ((b[0] == a[0]) & (b[2] < a[2]))
        rows[i] = tuple(torch.where(swap, q, p) for p, q in zip(a, b, strict=True))
        rows[j] = tuple(torch.where(swap, p, q) for p, q in zip(a, b, strict=True))
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


@stage
def sums_below(values: Sorted) -> tuple[Tensor, Tensor]:
    """`[elements + 1, groups, lanes]` twice: of the values below each bound, one after the other,
    the sum of weight * x, and that of weights."""
    products = values.weights * values.x
    by_x, by_weight = [torch.zeros_like(values.x[0])], [torch.zeros_like(values.x[0])]
    for product, weight in zip(products, values.weights, strict=True):
        by_x.append(by_x[-1] + product)
        by_weight.append(by_weight[-1] + weight)
    return torch.stack(by_x), torch.stack(by_weight)


def best_split(values: Sorted) -> Split:
    """The best of all pairs of bounds, tried in the order of the C, which decides what is best."""
    by_x, by_weight = sums_below(values)
    best = _begin(by_x[0])
    count = len(by_x)
    for lower in range(count):
        for upper in range(lower, count, STEP):
            end = min(upper + STEP, count)
            best = _step(
                (by_x[lower], by_x[upper:end], by_x[-1]),
                (by_weight[lower], by_weight[upper:end], by_weight[-1]),
                best,
                torch.tensor(float(LOWER * lower + UPPER * upper)),
            )
    return best


@stage
def _begin(zero: Tensor) -> Split:
    return Split(torch.zeros_like(zero), torch.full_like(zero, LOWEST), torch.full_like(zero, -1.0))


@stage
def _step(
    by_x: tuple[Tensor, Tensor, Tensor],
    by_weight: tuple[Tensor, Tensor, Tensor],
    best: Split,
    number: Tensor,
) -> Split:
    """Try one lower bound with several upper ones: sums below each, and those of all."""
    ends = [
        (by_x[0] * n[0], by_weight[0] * n[0] * n[0], (by_x[2] - by_x[1]) * n[2],
         (by_weight[2] - by_weight[1]) * n[2] * n[2], n[1])
        for n in (UP, DOWN)
    ]  # fmt: skip
    x, weight = by_x[1] - by_x[0], by_weight[1] - by_weight[0]
    square = weight * UP[1] * UP[1]
    scale, score, found = best
    for i in range(len(x)):
        for side, (low_x, low_2, high_x, high_2, middle) in enumerate(ends):
            sum_qx = low_x + x[i] * middle + high_x[i]
            sum_q2 = low_2 + square[i] + high_2[i]
            better = (sum_q2 > 0) & (sum_qx * sum_qx > score * sum_q2)
            scale = torch.where(better, sum_qx / sum_q2, scale)
            score = torch.where(better, scale * sum_qx, score)
            found = torch.where(better, number + float(UPPER * i + side), found)
    return Split(scale, score, found)


def split_levels(x: Tensor, values: Sorted, number: Tensor) -> tuple[Tensor, Tensor]:
    """Levels, int32 shaped as `x`, of the bounds that `number` names, and its last bit, int32."""
    whole = number.to(torch.int32)
    lower = _bound(values, whole >> 7)
    upper = _bound(values, (whole >> 1) & 63)
    levels = []
    for i in range(len(x)):
        above = [~((x[i] < v) | ((x[i] == v) & (i < place))) for v, place in (lower, upper)]
        levels.append(above[0].to(torch.int32) + above[1].to(torch.int32))
    return torch.stack(levels), whole & 1


def _bound(values: Sorted, index: Tensor) -> tuple[Tensor, Tensor]:
    """Value and place of the first that is not below the bound; of one above all, infinity."""
    value = torch.full_like(values.x[0], torch.inf)
    place = torch.full_like(value, float(len(values.x)))
    for i in range(len(values.x)):
        here = index == i
        value = torch.where(here, values.x[i], value)
        place = torch.where(here, values.places[i], place)
    return value, place
