"""Scale searches shared by the K types, on tiles `[elements, groups, lanes]` of float32.

Everything is added up along the elements one after the other, as the C does, because another order
changes bytes. The levels that a search ends with are needed only where the stored scale comes out
as zero; they are computed again from the accepted candidate instead of being carried along.

Source: make_qkx2_quants and make_qx_quants in llama.cpp's ggml-quants.c.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import (
    divide,
    half_bits,
    half_round,
    half_value,
    nearest_int,
    nearest_level,
    pack_scales6,
    root,
    word_bytes,
)
from gpukit_kernels.stages import stage, summing_stage

# Below this largest magnitude a group counts as zero (GROUP_MAX_EPS).
GROUP_EPS = 1e-15


def added(terms: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """Each of `terms(x)` added up over the elements, its first dimension, one after the other.

    Compiled, `sum` over a leading dimension becomes a loop in that order, and the code is compact;
    eager `sum` takes another order, so there the loop is written out.
    """
    found = terms(x)
    if torch.compiler.is_compiling():
        return tuple(term.sum(dim=0) for term in found)
    totals = []
    for term in found:
        total = term[0].clone()
        for row in term[1:]:
            total += row
        totals.append(total)
    return tuple(totals)


def first_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Along the first dimension the value of largest magnitude, with its sign, and the magnitude.

    The first one where several are as large; zero where there is none (a NaN never is).
    """
    if torch.compiler.is_compiling():
        return _first_largest_in_turn(x)
    high, low = x.amax(dim=0), x.amin(dim=0)
    magnitude = torch.maximum(high, -low) + 0.0  # no zero keeps a sign
    largest = torch.where(high == magnitude, magnitude, -magnitude)
    # Few lanes reach both ends, or hold a NaN: there the order decides.
    unclear = (high == -low) & (magnitude != 0) | (magnitude != magnitude)
    if bool(unclear.any()):
        largest[unclear], magnitude[unclear] = _first_largest_in_turn(x[:, unclear])
    return largest, magnitude


def _first_largest_in_turn(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = torch.zeros_like(x[0])
    magnitude = torch.zeros_like(largest)
    for i in range(x.shape[0]):
        a = x[i].abs()
        larger = a > magnitude
        magnitude = torch.where(larger, a, magnitude)
        largest = torch.where(larger, x[i], largest)
    return largest, magnitude


@stage
def scale_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """`first_largest` as a stage of its own."""
    return first_largest(x)


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

    mean: Tensor  # weights are mean + |x|
    high: Tensor
    weight: Tensor
    weighted_x: Tensor


@stage
def affine_range(x: Tensor) -> tuple[AffineSums, Tensor]:
    """Mean, range and weights' sums, and the lower end of the range, zero or below."""
    (squares,) = added(lambda v: (v * v,), x)
    mean = root(squares / x.shape[0])
    low = high = x[0]
    for i in range(1, x.shape[0]):
        low = torch.where(x[i] < low, x[i], low)
        high = torch.where(x[i] > high, x[i], high)
    low = torch.where(low > 0, torch.zeros_like(low), low)
    weight, weighted_x = added(lambda v: (mean + v.abs(), (mean + v.abs()) * v), x)
    return AffineSums(mean, high, weight, weighted_x), low


@summing_stage
def affine_begin(x: Tensor, sums: AffineSums, low: Tensor, levels: int) -> AffineSearch:
    """The straight division of the range and its error."""
    inverse = divide(float(levels), sums.high - low)
    scale = divide(1.0, inverse)
    begun = AffineSearch(scale, scale, low.clone(), inverse, low.clone())
    return begun._replace(error=_affine_error(x, sums.mean, begun, levels))


@summing_stage
def affine_step(
    x: Tensor, sums: AffineSums, best: AffineSearch, stretch: Tensor, levels: int
) -> AffineSearch:
    """Try one candidate, `stretch` steps over the range (0-d float32), and keep the better.

    The lower end is live: a candidate starts from the last accepted one.
    """
    inverse = stretch / (sums.high - best.low)

    def terms(v: Tensor) -> tuple[Tensor, ...]:
        level = nearest_level(inverse * (v - best.low), 0, levels)
        weighted = (sums.mean + v.abs()) * level
        return weighted, weighted * level, weighted * v

    sum_l, sum_l2, sum_xl = added(terms, x)
    determinant = sums.weight * sum_l2 - sum_l * sum_l
    scale = (sums.weight * sum_xl - sums.weighted_x * sum_l) / determinant
    low = (sum_l2 * sums.weighted_x - sum_l * sum_xl) / determinant
    above = low > 0
    scale = torch.where(above, sum_xl / sum_l2, scale)
    low = torch.where(above, torch.zeros_like(low), low)
    tried = AffineSearch(best.error, scale, low, inverse, best.low)
    error = _affine_error(x, sums.mean, tried, levels)
    better = (determinant > 0) & (error < best.error)
    return AffineSearch(
        torch.where(better, error, best.error),
        torch.where(better, scale, best.scale),
        torch.where(better, low, best.low),
        torch.where(better, inverse, best.inverse),
        torch.where(better, best.low, best.shift),
    )


def _affine_error(x: Tensor, mean: Tensor, tried: AffineSearch, levels: int) -> Tensor:
    def terms(v: Tensor) -> tuple[Tensor]:
        level = nearest_level(tried.inverse * (v - tried.shift), 0, levels)
        diff = tried.scale * level + tried.low - v
        return ((mean + v.abs()) * (diff * diff),)

    (error,) = added(terms, x)
    return error


def affine_search(x: Tensor, levels: int, start: float, delta: float, steps: int) -> AffineSearch:
    """Levels 0..`levels`, candidates `start + delta * k` over the range for k = 0..`steps`.

    A group of one value only has scale 0 and level 0 everywhere.
    """
    sums, low = affine_range(x)
    flat = sums.high == low
    best = affine_begin(x, sums, low, levels)
    for stretch in stretches(start, delta, steps, levels):
        best = affine_step(x, sums, best, stretch, levels)
    zero = torch.zeros_like(best.scale)
    return AffineSearch(
        best.error,
        torch.where(flat, zero, best.scale),
        torch.where(flat, sums.high, best.low),
        torch.where(flat, zero, best.inverse),
        torch.where(flat, zero, best.shift),
    )


def stretches(start: float, delta: float, steps: int, levels: int) -> Tensor:
    """float32 `[steps + 1]`: `(start + delta * k) + levels` with float32 rounding at each step."""
    k = torch.arange(steps + 1, dtype=torch.float32)
    return torch.tensor(start) + torch.tensor(delta) * k + float(levels)


class ScaleSearch(NamedTuple):
    """What has been accepted so far, `[groups, lanes]` each: x is about scale * level."""

    scale: Tensor
    best: Tensor
    inverse: Tensor  # level = nearest(x * inverse)


@summing_stage
def scale_begin(x: Tensor, largest: Tensor, levels: int) -> ScaleSearch:
    """The first candidate: the largest value becomes the lowest level."""
    inverse = divide(-float(levels), largest)
    sum_lx, sum_l2 = _scale_sums(x, inverse, levels)
    scale = torch.where(sum_l2 != 0, sum_lx / sum_l2, torch.zeros_like(sum_l2))
    return ScaleSearch(scale, scale * sum_lx, inverse)


@summing_stage
def scale_step(
    x: Tensor, largest: Tensor, best: ScaleSearch, stretch: Tensor, levels: int
) -> ScaleSearch:
    """Try one candidate, `stretch` levels to the largest value (0-d float32); keep the better."""
    inverse = stretch / largest
    sum_lx, sum_l2 = _scale_sums(x, inverse, levels)
    better = (sum_l2 > 0) & (sum_lx * sum_lx > best.best * sum_l2)
    scale = sum_lx / sum_l2
    return ScaleSearch(
        torch.where(better, scale, best.scale),
        torch.where(better, scale * sum_lx, best.best),
        torch.where(better, inverse, best.inverse),
    )


def _scale_sums(x: Tensor, inverse: Tensor, levels: int) -> tuple[Tensor, ...]:
    def terms(v: Tensor) -> tuple[Tensor, ...]:
        level = nearest_level(inverse * v, -levels, levels - 1)
        square = v * v
        return square * v * level, square * level * level

    return added(terms, x)


def scale_search(x: Tensor, levels: int) -> tuple[ScaleSearch, Tensor]:
    """The best scale for levels -`levels`..`levels` - 1, weights x * x, and which groups are zero.

    Candidates are `-(levels + 0.1 * k)` over the first largest value, k = -9..9.
    """
    largest, magnitude = scale_range(x)
    best = scale_begin(x, largest, levels)
    for k in [*range(-9, 0), *range(1, 10)]:
        stretch = -(float(levels) + torch.tensor(0.1) * torch.tensor(float(k)))
        best = scale_step(x, largest, best, stretch, levels)
    zero = magnitude < GROUP_EPS
    return best._replace(scale=torch.where(zero, torch.zeros_like(best.scale), best.scale)), zero


def signed_levels(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """d, float32 `[lanes]`, and int32 levels `[elements, lanes]` in 0..2 * `levels` - 1.

    d = the first value of largest magnitude / -`levels`; level = trunc(x / d + levels + 0.5), x / d
    being x times the reciprocal of the unrounded d (quantize_row_q4_0_ref, quantize_row_q5_0_ref).
    """
    largest, _ = first_largest(x)
    d = largest / torch.full_like(largest, -float(levels))
    inverse = torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))
    # The C goes through int8 before it takes the minimum; it shows where 1 / d is infinite.
    level = (x * inverse + (levels + 0.5)).to(torch.int32).to(torch.int8).to(torch.int32)
    return d, level.clamp(max=2 * levels - 1)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of float32 `[elements, lanes]`, by strict comparisons in turn.

    They begin at the ends of float32: of zeros of both signs the first one stays, a NaN never does.
    """
    if torch.compiler.is_compiling():
        return _extremes_in_turn(x)
    low, high = x.amin(dim=0), x.amax(dim=0)
    most = torch.finfo(torch.float32).max
    # Few lanes end at a zero, or hold what is not finite: there the order decides.
    unclear = (low == 0) | (high == 0) | ~((low >= -most) & (high <= most))
    if bool(unclear.any()):
        low[unclear], high[unclear] = _extremes_in_turn(x[:, unclear])
    return low, high


def _extremes_in_turn(x: Tensor) -> tuple[Tensor, Tensor]:
    high = torch.full_like(x[0], torch.finfo(torch.float32).min)
    low = -high
    for i in range(x.shape[0]):
        low = torch.where(x[i] < low, x[i], low)
        high = torch.where(x[i] > high, x[i], high)
    return low, high


def offset_levels(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """d and low, float32 `[lanes]`, and int32 `[elements, lanes]`: trunc((x - low) / d + 0.5).

    d = (high - low) / `levels`; / d is times the reciprocal of the unrounded d
    (quantize_row_q4_1_ref, quantize_row_q5_1_ref). What does not fit becomes the lowest int32.
    """
    low, high = extremes(x)
    d = (high - low) / torch.full_like(low, float(levels))
    inverse = torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))
    return d, low, ((x - low) * inverse + 0.5).to(torch.int32)


class SixBits(NamedTuple):
    """The scales of Q4_K and Q5_K blocks as stored, and what a reader makes of them."""

    head: Tensor  # uint8 [16, lanes]: d, dmin, scales
    step: Tensor  # float32 [8, lanes]: d * scale
    offset: Tensor  # float32 [8, lanes]: dmin * min


@stage
def affine_scales(best: AffineSearch) -> SixBits:
    """Scales and mins of the eight groups in 6 bits each under d and dmin."""
    lows = -best.low
    top_scale = torch.zeros_like(best.scale[0])
    top_low = torch.zeros_like(top_scale)
    for g in range(8):
        top_scale = torch.where(best.scale[g] > top_scale, best.scale[g], top_scale)
        top_low = torch.where(lows[g] > top_low, lows[g], top_low)
    scale6 = _six_bits(best.scale, top_scale)
    low6 = _six_bits(lows, top_low)
    d = top_scale / torch.full_like(top_scale, 63.0)
    dmin = top_low / torch.full_like(top_low, 63.0)
    head = [word_bytes(half_bits(d), 2), word_bytes(half_bits(dmin), 2), pack_scales6(scale6, low6)]
    return SixBits(
        torch.cat(head),
        half_round(d) * scale6.to(torch.float32),
        half_round(dmin) * low6.to(torch.float32),
    )


def affine_levels(groups: Tensor, best: AffineSearch, scales: SixBits, levels: int) -> Tensor:
    """int32 `[8, 32, lanes]`: the levels, taken anew from what a reader will decode.

    `groups` is `[8, 32, lanes]`. Where a group's scale decodes as zero, the search's levels stay.
    """
    step, offset = scales.step[:, None], scales.offset[:, None]
    found = nearest_level(best.inverse[:, None] * (groups - best.shift[:, None]), 0, levels)
    level = nearest_level((groups + offset) / step, 0, levels)
    return torch.where(step != 0, level, found).to(torch.int32)


def _six_bits(values: Tensor, top: Tensor) -> Tensor:
    inverse = torch.where(top > 0, divide(63.0, top), torch.zeros_like(top))
    # The C goes through uint8 before it takes the minimum.
    return (nearest_int(inverse * values) & 0xFF).clamp(max=63)


def affine_values(blocks: Tensor, scale6: Tensor, low6: Tensor, levels: Tensor) -> Tensor:
    """float32 `[256, lanes]` of the blocks' heads and their levels, uint8 `[8, 32, lanes]`."""
    step = half_value(blocks, 0) * scale6.to(torch.float32)
    offset = half_value(blocks, 2) * low6.to(torch.float32)
    return (step[:, None] * levels.to(torch.float32) - offset[:, None]).view(256, -1)
