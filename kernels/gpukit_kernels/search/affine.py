"""The search for a scale and a lower end: x is about scale * level + low, levels from 0 up.

Tiles are `[elements, groups, lanes]` of float32, or `[elements, lanes]`. The levels that a search
ends with are needed only where the stored scale comes out as zero; they are computed again from
the accepted candidate instead of being carried along.

`weights` say how much an element's error counts: shaped as the tile, or one number a group that
the element's magnitude is added to, which saves reading a tile of them.

Source: make_qkx2_quants and make_qkx3_quants in llama.cpp's ggml-quants.c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import (
    clamped_level,
    divide,
    half_bits,
    half_round,
    half_value,
    nearest_int,
    nearest_level,
    pack_scales6,
    root,
    unpack_scales6,
    word_bytes,
)
from gpukit_kernels.search.common import added
from gpukit_kernels.search.positive import positive_search
from gpukit_kernels.stages import stage


class AffineSearch(NamedTuple):
    """What has been accepted so far, `[groups, lanes]` each: x is about scale * level + low."""

    error: Tensor
    scale: Tensor
    low: Tensor
    # The candidate that gave it: level = nearest((x - shift) * inverse).
    inverse: Tensor
    shift: Tensor


class AffineSums(NamedTuple):
    """What every candidate needs, `[groups, lanes]` each."""

    high: Tensor
    weight: Tensor
    weighted_x: Tensor


def _weight(v: Tensor, weights: Tensor) -> Tensor:
    return weights if weights.ndim == v.ndim else weights + v.abs()


def _level(v: Tensor, weights: Tensor, levels: int) -> Tensor:
    # make_qkx3_quants, which takes given weights, clamps before it rounds.
    given = weights.ndim == v.ndim
    return clamped_level(v, levels) if given else nearest_level(v, 0, levels)


@stage
def root_mean_square(x: Tensor) -> Tensor:
    """The root of the mean of x * x over the elements."""
    (squares,) = added(lambda v: (v * v,), x)
    return root(squares / x.shape[0])


@stage
def affine_range(x: Tensor, weights: Tensor) -> tuple[AffineSums, Tensor, Tensor]:
    """The upper end, the weights' sums, the lower end of the range, zero or below, and which groups
    have one value only, 1 or 0."""
    low = high = x[0]
    for i in range(1, x.shape[0]):
        low = torch.where(x[i] < low, x[i], low)
        high = torch.where(x[i] > high, x[i], high)
    low = torch.where(low > 0, torch.zeros_like(low), low)
    weight, weighted_x = added(lambda v: (_weight(v, weights), _weight(v, weights) * v), x)
    if weights.ndim == x.ndim:
        # The C begins this sum with its first term: it is -0, the lowest int32, where all are.
        negative = (weights * x).view(torch.int32).amax(dim=0) == torch.iinfo(torch.int32).min
        weighted_x = torch.where(negative, -0.0, weighted_x)
    return AffineSums(high, weight, weighted_x), low, (high == low).to(torch.float32)


@stage
def affine_begin(
    x: Tensor, weights: Tensor, sums: AffineSums, low: Tensor, levels: int, absolute: bool
) -> AffineSearch:
    """The straight division of the range and its error."""
    inverse = divide(float(levels), sums.high - low)
    scale = divide(1.0, inverse)
    if weights.ndim == x.ndim:
        # Here the C does not clamp first: what is infinite comes out as level 0.
        inverse = torch.where(inverse == float("inf"), torch.zeros_like(inverse), inverse)
    begun = AffineSearch(scale, scale, low.clone(), inverse, low.clone())
    return begun._replace(error=_affine_error(x, weights, begun, levels, absolute))


@stage
def affine_step(
    x: Tensor,
    weights: Tensor,
    sums: AffineSums,
    best: AffineSearch,
    stretch: Tensor,
    levels: int,
    absolute: bool,
) -> AffineSearch:
    """Try one candidate, `stretch` steps over the range (0-d float32), and keep the better.

    The lower end is live: a candidate starts from the last accepted one.
    """
    inverse = stretch / (sums.high - best.low)

    def terms(v: Tensor) -> tuple[Tensor, ...]:
        level = _level(inverse * (v - best.low), weights, levels)
        weighted = _weight(v, weights) * level
        return weighted, weighted * level, weighted * v

    sum_l, sum_l2, sum_xl = added(terms, x)
    determinant = sums.weight * sum_l2 - sum_l * sum_l
    scale = (sums.weight * sum_xl - sums.weighted_x * sum_l) / determinant
    low = (sum_l2 * sums.weighted_x - sum_l * sum_xl) / determinant
    above = low > 0
    scale = torch.where(above, sum_xl / sum_l2, scale)
    low = torch.where(above, torch.zeros_like(low), low)
    tried = AffineSearch(best.error, scale, low, inverse, best.low)
    error = _affine_error(x, weights, tried, levels, absolute)
    better = (determinant > 0) & (error < best.error)
    return AffineSearch(
        torch.where(better, error, best.error),
        torch.where(better, scale, best.scale),
        torch.where(better, low, best.low),
        torch.where(better, inverse, best.inverse),
        torch.where(better, best.low, best.shift),
    )


def _affine_error(
    x: Tensor, weights: Tensor, tried: AffineSearch, levels: int, absolute: bool
) -> Tensor:
    def terms(v: Tensor) -> tuple[Tensor]:
        level = _level(tried.inverse * (v - tried.shift), weights, levels)
        diff = tried.scale * level + tried.low - v
        return (_weight(v, weights) * (diff.abs() if absolute else diff * diff),)

    (error,) = added(terms, x)
    return error


def affine_search(
    x: Tensor,
    weights: Tensor,
    levels: int,
    start: float,
    delta: float,
    steps: int,
    absolute: bool = False,
) -> tuple[AffineSearch, Tensor]:
    """The best of levels 0..`levels`, and the sum of each group's weights.

    Candidates are `start + delta * k` over the range for k = 0..`steps`; errors count squared, or
    `absolute`. A group of one value only has scale 0 and level 0 everywhere.
    """
    sums, low, flat = affine_range(x, weights)
    best = affine_begin(x, weights, sums, low, levels, absolute)
    for stretch in stretches(start, delta, steps, levels):
        best = affine_step(x, weights, sums, best, stretch, levels, absolute)
    return _affine_end(best, flat, sums.high), sums.weight


@stage
def _affine_end(best: AffineSearch, flat: Tensor, high: Tensor) -> AffineSearch:
    """What a search ends with; scale and levels are zero where a group has one value only."""
    zero = torch.zeros_like(best.scale)
    return AffineSearch(
        best.error.clone(),
        torch.where(flat != 0, zero, best.scale),
        torch.where(flat != 0, high, best.low),
        torch.where(flat != 0, zero, best.inverse),
        torch.where(flat != 0, zero, best.shift),
    )


# The search of every type with importance weights: start, delta, steps.
WITH_IMPORTANCE = (-0.9, 0.05, 36)


def stretches(start: float, delta: float, steps: int, levels: int) -> Tensor:
    """float32 `[steps + 1]`: `(start + delta * k) + levels` with float32 rounding at each step."""
    k = torch.arange(steps + 1, dtype=torch.float32)
    return torch.tensor(start) + torch.tensor(delta) * k + float(levels)


@stage
def found_levels(x: Tensor, best: AffineSearch, levels: int) -> Tensor:
    """float32, shaped as `x`: the levels that a search with given weights ended with."""
    return clamped_level(best.inverse * (x - best.shift), levels)


class Steps(NamedTuple):
    """What a reader makes of a block's scales, `[groups, lanes]`: x = step * level - offset."""

    step: Tensor
    offset: Tensor


@stage
def read_levels(
    groups: Tensor, best: AffineSearch, steps: Steps, levels: int, given: bool
) -> Tensor:
    """Levels `[groups, elements, lanes]`, taken anew from what a reader will decode.

    Where a group's scale decodes as zero, the search's levels stay; `given` says whether that had
    a weight for each element.
    """
    step, offset = steps.step[:, None], steps.offset[:, None]
    found = best.inverse[:, None] * (groups - best.shift[:, None])
    found = clamped_level(found, levels) if given else found
    level = torch.where(step != 0, (groups + offset) / step, found)
    return nearest_level(level, 0, levels)


def top_codes(values: Tensor, top_code: int) -> tuple[Tensor, Tensor]:
    """int32 codes `[groups, lanes]`, not clamped, under one scale a block, float32 `[lanes]`.

    The largest value gets `top_code`; where none is above zero, everything is zero.
    """
    top = torch.zeros_like(values[0])
    for value in values:
        top = torch.where(value > top, value, top)
    inverse = torch.where(top > 0, divide(float(top_code), top), torch.zeros_like(top))
    return nearest_int(inverse * values), top / torch.full_like(top, float(top_code))


@stage
def scales6(best: AffineSearch) -> tuple[Tensor, Steps]:
    """The heads, bytes `[16, lanes]`, of Q4_K and Q5_K blocks, and their steps."""
    scale, d = top_codes(best.scale, 63)
    low, dmin = top_codes(-best.low, 63)
    # The C goes through uint8 before it takes the minimum.
    return _head6((scale & 0xFF).clamp(max=63), (low & 0xFF).clamp(max=63), d, dmin)


def weighted_scales6(best: AffineSearch, weight: Tensor, most: int = 255) -> tuple[Tensor, Steps]:
    """`scales6` by a search of their own, in which a group counts by its `weight`.

    Codes above `most` become it: the C takes a minimum for Q5_K, for Q4_K it does not.
    """
    codes, d = positive_search(scales_and_minima(best), weight, 63)
    return _weighted_head6(codes, d, most)


@stage
def scales_and_minima(best: AffineSearch) -> Tensor:
    """float32 `[groups, 2, lanes]`: each group's scale and its minimum, with the sign turned."""
    return torch.stack([best.scale, -best.low], dim=1)


@stage
def _weighted_head6(codes: Tensor, d: Tensor, most: int) -> tuple[Tensor, Steps]:
    codes = codes.clamp(max=most).to(torch.int32)
    return _head6(codes[:, 0], codes[:, 1], d[0], d[1])


def _head6(scale: Tensor, low: Tensor, d: Tensor, dmin: Tensor) -> tuple[Tensor, Steps]:
    packed = pack_scales6(scale, low)
    # A code above 63, which a search may end with, spills into its neighbours' bits.
    scale, low = unpack_scales6(packed)
    head = torch.cat([word_bytes(half_bits(d), 2), word_bytes(half_bits(dmin), 2), packed])
    return head, Steps(
        half_round(d) * scale.to(torch.float32), half_round(dmin) * low.to(torch.float32)
    )


def affine_values(blocks: Tensor, scale6: Tensor, low6: Tensor, levels: Tensor) -> Tensor:
    """float32 `[256, lanes]` of the blocks' heads and their levels, uint8 `[8, 32, lanes]`."""
    step = half_value(blocks, 0) * scale6.to(torch.float32)
    offset = half_value(blocks, 2) * low6.to(torch.float32)
    return (step[:, None] * levels.to(torch.float32) - offset[:, None]).view(256, -1)
