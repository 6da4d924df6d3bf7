"""The search for one scale of levels of both signs: x is about scale * level.

Tiles are `[elements, groups, lanes]` of float32, or `[elements, lanes]`. `weights` say how much an
element's error counts, shaped as the tile; None means x * x. As in affine_search.py the levels are
computed again from the accepted candidate.

Source: make_qx_quants and make_q3_quants in llama.cpp's ggml-quants.c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, nearest_level
from gpukit_kernels.refine import Sums, refined
from gpukit_kernels.search import GROUP_EPS, added, first_largest
from gpukit_kernels.stages import stage, summing_stage


class ScaleSearch(NamedTuple):
    """What has been accepted so far, `[groups, lanes]` each: x is about scale * level."""

    scale: Tensor
    best: Tensor
    inverse: Tensor  # level = nearest(x * inverse)


@stage
def scale_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """`first_largest` as a stage of its own."""
    return first_largest(x)


@summing_stage
def scale_begin(x: Tensor, weights: Tensor | None, largest: Tensor, levels: int) -> ScaleSearch:
    """The first candidate: the largest value becomes the lowest level."""
    inverse = divide(-float(levels), largest)
    sum_lx, sum_l2 = _scale_sums(x, weights, inverse, levels)
    scale = torch.where(sum_l2 != 0, sum_lx / sum_l2, torch.zeros_like(sum_l2))
    return ScaleSearch(scale, scale * sum_lx, inverse)


@summing_stage
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
    """The best scale for levels -`levels`..`levels` - 1, and which groups are zero.

    Candidates are `-(levels + 0.1 * k)` over the first largest value, k = -9..9.
    """
    largest, magnitude = scale_range(x)
    best = scale_begin(x, weights, largest, levels)
    for k in [*range(-9, 0), *range(1, 10)]:
        stretch = -(float(levels) + torch.tensor(0.1) * torch.tensor(float(k)))
        best = scale_step(x, weights, largest, best, stretch, levels)
    zero = magnitude < GROUP_EPS
    return best._replace(scale=torch.where(zero, torch.zeros_like(best.scale), best.scale)), zero


def found_levels(x: Tensor, inverse: Tensor, zero: Tensor, levels: int) -> Tensor:
    """float32 in 0..2 * `levels` - 1, shaped as `x`: the levels that a search ended with."""
    level = nearest_level(x * inverse, -levels, levels - 1) + float(levels)
    return torch.where(zero, torch.zeros_like(level), level)


def refined_search(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scales `[groups, lanes]` and packed levels 0..2 * `levels` - 1 of sixteen elements.

    One rounded division, then refine.py; weights are x * x. `unpack_found` takes the levels.
    """
    zero, begun, sums = _refined_begin(x, levels)
    found, sums = refined(x, None, begun.unbind(), sums, -levels, levels - 1)
    return _refined_end(found, sums, zero, levels)


@summing_stage
def _refined_begin(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Sums]:
    largest, magnitude = first_largest(x)
    inverse = divide(-float(levels), largest)
    begun = nearest_level(inverse * x, -levels, levels - 1)
    sums = Sums(*_scale_sums(x, None, inverse, levels))
    return magnitude < GROUP_EPS, begun, sums


@stage
def _refined_end(
    levels: tuple[Tensor, ...], sums: Sums, zero: Tensor, shift: int
) -> tuple[Tensor, Tensor]:
    nothing = torch.zeros_like(sums.lx)
    scale = torch.where(sums.l2 > 0, sums.lx / sums.l2, nothing)
    words = []
    for i in range(0, len(levels), 8):
        word = torch.zeros_like(scale, dtype=torch.int32)
        for k, level in enumerate(levels[i : i + 8]):
            word = word | ((level.to(torch.int32) + shift) << (4 * k))
        words.append(torch.where(zero, torch.zeros_like(word), word))
    return torch.where(zero, nothing, scale), torch.stack(words, dim=1)


def unpack_found(words: Tensor) -> Tensor:
    """float32 `[groups, 16, lanes]` of int32 `[groups, 2, lanes]`, four bits a level."""
    shifts = torch.arange(8, dtype=torch.int32, device=words.device)[:, None] * 4
    groups, _, lanes = words.shape
    return ((words[:, :, None] >> shifts) & 15).view(groups, 16, lanes).to(torch.float32)
