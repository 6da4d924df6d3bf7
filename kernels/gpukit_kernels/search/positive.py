"""The search for one scale over numbers that are not negative, with weights.

Source: make_qp_quants in llama.cpp's ggml-quants.c, which finds d and dmin of a block from the
scales and minima of its groups where importance weights are given.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, nearest_int
from gpukit_kernels.search.common import GROUP_EPS, added
from gpukit_kernels.search.refine import Sums, low_byte, refined
from gpukit_kernels.stages import stage


class _Fit(NamedTuple):
    error: Tensor
    inverse: Tensor  # level = nearest(x * inverse)


def positive_search(x: Tensor, weight: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes 0..255 of float32 `x` `[n, k, lanes]`, and the scales, float32 `[k, lanes]`.

    Codes are 0..`levels` but for a negative x, whose code wraps around as the C's uint8 does.
    `weight`, float32 `[n, lanes]` or shaped as `x`, says how much an error counts.
    """
    weights = weight if weight.ndim == x.ndim else weight[:, None]
    top, best = _begin(x, weights, levels)
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        stretch = torch.tensor(0.1) * torch.tensor(float(k)) + float(levels)
        best = _step(x, weights, top, best, stretch, levels)
    level, sums = _settle(x, weights, best.inverse, levels)
    codes, sums = refined(x, weights, level.unbind(), sums, None, levels)
    return _end(codes, sums, top)


@stage
def _begin(x: Tensor, weights: Tensor, levels: int) -> tuple[Tensor, _Fit]:
    top = torch.zeros_like(x[0])
    for v in x:
        top = torch.where(top > v, top, v)
    inverse = divide(float(levels), top)
    scale = divide(1.0, inverse)

    (error,) = added(
        lambda v: (_weighted(weights, v - scale * (nearest_int(inverse * v) & 0xFF)),), x
    )
    return top, _Fit(error, inverse)


@stage
def _step(
    x: Tensor, weights: Tensor, top: Tensor, best: _Fit, stretch: Tensor, levels: int
) -> _Fit:
    inverse = stretch / top
    scale = divide(1.0, inverse)
    (error,) = added(
        lambda v: (_weighted(weights, v - scale * nearest_int(inverse * v).clamp(max=levels)),),
        x,
    )
    better = error < best.error
    return _Fit(torch.where(better, error, best.error), torch.where(better, inverse, best.inverse))


def _weighted(weights: Tensor, diff: Tensor) -> Tensor:
    return weights * diff * diff


@stage
def _settle(x: Tensor, weights: Tensor, inverse: Tensor, levels: int) -> tuple[Tensor, Sums]:
    level = nearest_int(inverse * x).clamp(max=levels).to(torch.float32)
    weighted = weights * x * level
    sum_lx, sum_l2 = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for i in range(x.shape[0]):
        sum_lx = sum_lx + weighted[i]
        sum_l2 = sum_l2 + weights[i] * level[i] * level[i]
    return low_byte(level).contiguous(), Sums(sum_lx, sum_l2)


@stage
def _end(codes: tuple[Tensor, ...], sums: Sums, top: Tensor) -> tuple[Tensor, Tensor]:
    zero = top < GROUP_EPS
    nothing = torch.zeros_like(top)
    scale = torch.where(sums.l2 > 0, sums.lx / sums.l2, nothing)
    found = torch.stack([torch.where(zero, nothing, code) for code in codes])
    return found, torch.where(zero, nothing, scale)
