"""The search for one scale of levels of both signs: x is about scale * level.

Tiles are `[elements, groups, lanes]` of float32, or `[elements, lanes]`. `weights` say how much an
element's error counts, shaped as the tile; None means x * x. As in affine.py the levels are
computed again from the accepted candidate.

Source: make_qx_quants and make_q3_quants in llama.cpp's ggml-quants.c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, nearest_level
from gpukit_kernels.search.common import GROUP_EPS, added, first_largest
from gpukit_kernels.search.refine import Sums, refined
from gpukit_kernels.stages import stage


class ScaleSearch(NamedTuple):
    """What has been accepted so far, `[groups, lanes]` each: x is about scale * level."""

    scale: Tensor
    best: Tensor
    inverse: Tensor  # level = nearest(x * inverse)


@stage
def scale_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """`first_largest` as a stage of its own."""
    return first_largest(x)


@stage
def scale_begin(x: Tensor, weights: Tensor | None, largest: Tensor, levels: int) -> ScaleSearch:
    """The first candidate: the largest value becomes the lowest level."""
    inverse = divide(-float(levels), largest)
    sum_lx, sum_l2 = _scale_sums(x, weights, inverse, levels)
    scale = torch.where(sum_l2 != 0, sum_lx / sum_l2, torch.zeros_like(sum_l2))
    return ScaleSearch(scale, scale * sum_lx, inverse)


@stage
def scale_step(
    x: Tensor,
    weights: Tensor | None,
    largest: Tensor,
    best: ScaleSearch,
    stretch: Tensor,
    levels: int,
) -> ScaleSearch:
    """Try one candidate, `stretch` levels to the largest value (0-d float32); keep the better."""
    inverse = stretch / largest
    sum_lx, sum_l2 = _scale_sums(x, weights, inverse, levels)
    better = (sum_l2 > 0) & (sum_lx * sum_lx > best.best * sum_l2)
    scale = sum_lx / sum_l2
    return ScaleSearch(
        torch.where(better, scale, best.scale),
        torch.where(better, scale * sum_lx, best.best),
        torch.where(better, inverse, best.inverse),
    )


def _scale_sums(
    x: Tensor, weights: Tensor | None, inverse: Tensor, levels: int
) -> tuple[Tensor, ...]:
    def terms(v: Tensor) -> tuple[Tensor, ...]:
        level = nearest_level(inverse * v, -levels, levels - 1)
        weight = v * v if weights is None else weights
        return weight * v * level, weight * level * level

    return added(terms, x)


def scale_search(x: Tensor, weights: Tensor | None, levels: int) -> tuple[ScaleSearch, Tensor]:
    """The best scale for levels -`levels`..`levels` - 1, and which groups are zero, 1 or 0.

    Candidates are `-(levels + 0.1 * k)` over the first largest value, k = -9..9.
    """
    largest, magnitude = scale_range(x)
    best = scale_begin(x, weights, largest, levels)
    for k in [*range(-9, 0), *range(1, 10)]:
        stretch = -(float(levels) + torch.tensor(0.1) * torch.tensor(float(k)))
        best = scale_step(x, weights, largest, best, stretch, levels)
    scale, zero = _scale_end(best.scale, magnitude)
    return best._replace(scale=scale), zero


@stage
def _scale_end(scale: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
    zero = magnitude < GROUP_EPS
    return torch.where(zero, torch.zeros_like(scale), scale), zero.to(torch.float32)


def found_levels(x: Tensor, inverse: Tensor, zero: Tensor, levels: int) -> Tensor:
    """float32 in 0..2 * `levels` - 1, shaped as `x`: the levels that a search ended with."""
    level = nearest_level(x * inverse, -levels, levels - 1) + float(levels)
    return torch.where(zero != 0, torch.zeros_like(level), level)


@stage
def searched_levels(x: Tensor, inverse: Tensor, zero: Tensor, levels: int) -> Tensor:
    """`found_levels` as a stage of its own."""
    return found_levels(x, inverse, zero, levels)


def refined_search(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scales `[groups, lanes]` and levels 0..2 * `levels` - 1, `[groups, elements, lanes]`.

    One rounded division, then refine.py; weights are x * x.
    """
    zero, begun, sums = _refined_begin(x, levels)
    found, sums = refined(x, None, begun.unbind(), sums, -levels, levels - 1)
    return _refined_end(found, sums, zero, levels)


@stage
def _refined_begin(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Sums]:
    largest, magnitude = first_largest(x)
    inverse = divide(-float(levels), largest)
    begun = nearest_level(inverse * x, -levels, levels - 1)
    sums = Sums(*_scale_sums(x, None, inverse, levels))
    return (magnitude < GROUP_EPS).to(torch.float32), begun.contiguous(), sums


@stage
def _refined_end(
    levels: tuple[Tensor, ...], sums: Sums, zero: Tensor, shift: int
) -> tuple[Tensor, Tensor]:
    nothing = torch.zeros_like(sums.lx)
    scale = torch.where(sums.l2 > 0, sums.lx / sums.l2, nothing)
    found = [torch.where(zero != 0, nothing, level + float(shift)) for level in levels]
    return torch.where(zero != 0, nothing, scale), torch.stack(found, dim=1)
