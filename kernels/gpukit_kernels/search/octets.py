"""Blocks of IQ1_S and IQ1_M from their importance on: levels, rows of the codebook, scales.

Tiles are `[elements, groups, lanes]`; of octets, eight elements each, `[octets, groups, lanes]`.

Source: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl and iq1_find_best_neighbour2 in llama.cpp's
ggml-quants.c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, nearest_level
from gpukit_kernels.search.common import added
from gpukit_kernels.search.near import near_rows
from gpukit_kernels.search.neighbours import OFF_GRID, ROW_SHIFT
from gpukit_kernels.search.splits import (
    DOWN,
    UP,
    Sorted,
    Split,
    best_split,
    sorted_values,
    split_levels,
    sums_below,
    sums_of_halves,
)
from gpukit_kernels.stages import stage

# The codebook of both types.
BOOK = "IQ1_S"


class Octets(NamedTuple):
    """What has been found of each group: entries of `neighbours` and whether an octet goes an
    eighth down, int32 `[octets, groups, lanes]`, and the scale `[groups, lanes]`."""

    entries: Tensor
    down: Tensor
    scale: Tensor


def octets_of(x: Tensor, weights: Tensor, size: int, least: float, *, halves: bool) -> Octets:
    """What becomes of float32 `[256, lanes]` in groups of `size` values; a group whose largest
    magnitude is below `least` counts as zero, and has the first row then."""
    groups, weights = (part.view(256 // size, size, -1).transpose(0, 1) for part in (x, weights))
    values = sorted_values(groups, weights)
    best = best_split(sums_of_halves(values) if halves else sums_below(values), halves=halves)
    found = _rows(groups, weights, values, best, halves)
    return _fitted(groups, weights, best, found, least)


@stage
def _rows(x: Tensor, weights: Tensor, values: Sorted, best: Split, halves: bool) -> Octets:
    """Rows for the levels of the best split, or near them."""
    levels, way = split_levels(x, values, best.number, 4 if halves else 2)
    # A scale below zero turns levels and ways around.
    minus = best.scale < 0
    scale = torch.where(minus, -best.scale, best.scale)
    levels = torch.where(minus, 2 - levels, levels)
    way = torch.where(minus, (3 if halves else 1) - way, way)
    octets = len(x) // 8
    down = torch.stack([way >> 1, way & 1] if halves else [way] * octets)
    parts = [part.unflatten(0, (octets, 8)).unbind(1) for part in (levels, x, weights)]
    point = parts[0][0]
    for i in range(1, 8):
        point = point | (parts[0][i] << (2 * i))
    entries = near_rows(point, scale.expand(point.shape), parts[1], parts[2], BOOK, _lowest(down))
    return Octets(entries, down, scale)


def _lowest(down: Tensor) -> Tensor:
    """What level 0 stands for."""
    return torch.where(down == 0, torch.full_like(down, UP[0], dtype=torch.float32), DOWN[0])


@stage
def _fitted(x: Tensor, weights: Tensor, best: Split, found: Octets, least: float) -> Octets:
    """`found` with the best scale for its rows where one is not what the levels were."""
    numbers = numbers_of(found)
    sum_qx, sum_q2 = added(lambda v: (weights * numbers * v, weights * numbers * numbers), x)
    away = found.entries[0]
    for entries in found.entries[1:]:
        away = away | entries
    fits = ((away & OFF_GRID) != 0) & (sum_qx > 0) & (sum_q2 > 0)
    scale = torch.where(fits, sum_qx / sum_q2, found.scale)
    none = (best.number < 0) | (_largest(x) < least)
    return Octets(
        torch.where(none, 0, found.entries),
        torch.where(none, 0, found.down),
        torch.where(none, torch.zeros_like(scale), scale),
    )


def _largest(x: Tensor) -> Tensor:
    largest = x[0].abs()
    for i in range(1, len(x)):
        a = x[i].abs()
        largest = torch.where(largest > a, largest, a)
    return largest


def numbers_of(found: Octets) -> Tensor:
    """float32 `[elements, groups, lanes]`: what the levels stand for."""
    levels = torch.stack([(found.entries >> (2 * i)) & 3 for i in range(8)], dim=1)
    return (levels.to(torch.float32) + _lowest(found.down)[:, None]).flatten(0, 1)


def scale_codes(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of scales `[groups, lanes]`, int32 0..7, d, `[lanes]`, and whether any scale is not
    zero."""
    top = torch.zeros_like(scale[0])
    for v in scale:
        top = torch.where(top > v, top, v)
    d = top / torch.full_like(top, 15.0)
    codes = nearest_level(0.5 * (divide(1.0, d) * scale - 1.0), 0, 7).to(torch.int32)
    return codes, d, top != 0


def row_numbers(found: Octets) -> Tensor:
    """int32 `[octets, groups, lanes]`: which rows of the codebook."""
    return (found.entries & (OFF_GRID - 1)) >> ROW_SHIFT
