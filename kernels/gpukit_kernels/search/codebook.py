"""The search for a scale of IQ4_NL and IQ4_XS: x is about scale * one of sixteen uneven numbers.

Tiles are `[32, groups, lanes]` of float32, or `[32, lanes]`.

Source: kvalues_iq4nl, best_index_int8 and quantize_row_iq4_nl_impl in llama.cpp's ggml-common.h and
ggml-quants.c.
"""

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import divide
from gpukit_kernels.cpu.trace import is_tracing
from gpukit_kernels.search.common import GROUP_EPS, added, first_largest
from gpukit_kernels.stages import stage

CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Half way between neighbours, and from there on the upper one is nearest.
MIDDLES = tuple((low + high) / 2 for low, high in itertools.pairwise(CODEBOOK))
TRIES = 7


class CodebookSearch(NamedTuple):
    """What has been accepted so far, `[groups, lanes]` each."""

    scale: Tensor
    best: Tensor


@cache
def _by_half(values: bool) -> Tensor:
    """For each half from -128 to 127.5 the nearest code, int32, or its number, float32.

    All middles are whole halves, so a number's nearest is that of the half below it.
    """
    halves = torch.arange(-256, 256, dtype=torch.float64) / 2
    code = (halves[:, None] >= torch.tensor(MIDDLES, dtype=torch.float64)).sum(dim=1)
    return torch.tensor(CODEBOOK, dtype=torch.float32)[code] if values else code.to(torch.int32)


def _nearest(v: Tensor, values: bool) -> Tensor:
    if is_tracing():
        # A half of the middles after the other. What is not below one lies above: a NaN, too.
        below = v < MIDDLES[7]
        code = torch.where(below, 0, torch.full_like(v, 8, dtype=torch.int32))
        upper = torch.where(v < torch.where(below, MIDDLES[3], MIDDLES[11]), 0, 4)
        code = code + upper.to(torch.int32)
        for step in (2, 1):
            middle = torch.tensor(MIDDLES)[code + (step - 1)]
            code = torch.where(v < middle, code, code + step)
        return torch.tensor(CODEBOOK, dtype=torch.float32)[code] if values else code
    top = torch.full((), 255.0)
    half = torch.fmin(v * 2, top).clamp_(min=-256).floor_().to(torch.int32).add_(256)
    return _by_half(values)[half]


def nearest_code(v: Tensor) -> Tensor:
    """int32 0..15: the place in the codebook nearest to `v`, the upper one on ties."""
    return _nearest(v, values=False)


def _sums(x: Tensor, weights: Tensor | None, inverse: Tensor) -> tuple[Tensor, ...]:
    def terms(v: Tensor) -> tuple[Tensor, ...]:
        number = _nearest(inverse * v, values=True)
        weighted = (v * v if weights is None else weights) * number
        return weighted * v, weighted * number

    return added(terms, x)


@stage
def codebook_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first largest value, with its sign, and its magnitude."""
    return first_largest(x)


@stage
def codebook_begin(x: Tensor, weights: Tensor | None, largest: Tensor) -> CodebookSearch:
    """The first candidate: the largest value becomes the lowest number."""
    inverse = divide(1.0, -largest / torch.full_like(largest, float(CODEBOOK[0])))
    sum_qx, sum_q2 = _sums(x, weights, inverse)
    scale = torch.where(sum_q2 > 0, sum_qx / sum_q2, torch.zeros_like(sum_q2))
    return CodebookSearch(scale, scale * sum_qx)


@stage
def codebook_step(
    x: Tensor, weights: Tensor | None, largest: Tensor, best: CodebookSearch, number: Tensor
) -> CodebookSearch:
    """Try `number` (0-d float32) for the largest value and keep the better."""
    sum_qx, sum_q2 = _sums(x, weights, number / largest)
    better = (sum_q2 > 0) & (sum_qx * sum_qx > best.best * sum_q2)
    scale = sum_qx / sum_q2
    return CodebookSearch(
        torch.where(better, scale, best.scale), torch.where(better, scale * sum_qx, best.best)
    )


def codebook_search(x: Tensor, weights: Tensor | None) -> Tensor:
    """The best scales, float32 `[groups, lanes]`, zero where all of a group is next to zero."""
    largest, magnitude = codebook_range(x)
    best = codebook_begin(x, weights, largest)
    for k in range(-TRIES, TRIES + 1):
        best = codebook_step(x, weights, largest, best, torch.tensor(float(k + CODEBOOK[0])))
    return _codebook_end(best.scale, magnitude)


@stage
def _codebook_end(scale: Tensor, magnitude: Tensor) -> Tensor:
    return torch.where(magnitude < GROUP_EPS, torch.zeros_like(scale), scale)


def codebook_values(codes: Tensor) -> Tensor:
    """float32, shaped as uint8 `codes` 0..15: their numbers."""
    return torch.tensor(CODEBOOK, dtype=torch.float32, device=codes.device)[codes.to(torch.int32)]
