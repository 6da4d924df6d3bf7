"""Rows of the codebook of IQ1_S and IQ1_M for groups whose levels have been found.

Tiles are `[elements, groups, lanes]`; of octets, eight elements each, `[octets, groups, lanes]`.

Source: iq1_find_best_neighbour2 and what calls it in llama.cpp's ggml-quants.c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.search.common import added
from gpukit_kernels.search.neighbours import COUNT_BITS, LEVELS, OFF_GRID, ROW_SHIFT, neighbours
from gpukit_kernels.search.splits import DOWN, LOWEST, UP
from gpukit_kernels.stages import stage

CPU = torch.device("cpu")


class Rows(NamedTuple):
    """Of each octet its row's number, int32, and of each value what its level stands for."""

    rows: Tensor
    numbers: Tensor
    off: Tensor


def numbers_of(levels: Tensor, down: Tensor) -> Tensor:
    """float32, shaped as int32 `levels`: -1, 0 or 1 and an eighth more, or less where `down`."""
    return (levels - 1).to(torch.float32) + torch.where(down == 0, UP[1], DOWN[1])


def nearest_rows(
    x: Tensor, weights: Tensor, levels: Tensor, scale: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For int32 `levels` `[n, ...]` entries `[n / 8, ...]` of `neighbours`: the octet's own, or of
    those near it the one with the least error, the first of several."""
    known = neighbours("IQ1_S", CPU)
    points = _points(levels)
    entries = known.points[points]
    (away,) = (entries.flatten() < 0).nonzero(as_tuple=True)
    if len(away):
        found = entries.flatten()
        found[away] = _nearest(_errors(x, weights, scale, down)[:, :, away], -1 - found[away])
        entries = found.view_as(entries)
    return entries


def _points(levels: Tensor) -> Tensor:
    """int32 `[n / 8, ...]`: eight levels packed, two bits each."""
    octets = levels.unflatten(0, (len(levels) // 8, 8))
    point = octets[:, 0]
    for i in range(1, 8):
        point = point | (octets[:, i] << (2 * i))
    return point


def _errors(x: Tensor, weights: Tensor, scale: Tensor, down: Tensor) -> Tensor:
    """float32 `[8, 3, octets]`: what each value of an octet would add to its error with a level."""
    found = []
    for up, low in zip(UP, DOWN, strict=True):
        diff = scale * torch.where(down == 0, up, low) - x
        error = weights * diff * diff
        found.append(error.unflatten(0, (len(x) // 8, 8)).transpose(0, 1).flatten(1))
    return torch.stack(found, dim=1)


def _nearest(errors: Tensor, lists: Tensor) -> Tensor:
    """Entries, int32 `[octets]`: of each list the one with the least error."""
    known = neighbours("IQ1_S", CPU)
    first, parts = lists >> COUNT_BITS, lists & ((1 << COUNT_BITS) - 1)
    best = torch.full(lists.shape, -LOWEST)
    found = known.entries[first][:, 0].clone()
    for part in range(int(parts.max())):
        (left,) = (parts > part).nonzero(as_tuple=True)
        for entry in known.entries[first[left] + part].t():
            error = torch.zeros(len(left))
            for i in range(8):
                level = ((entry >> (2 * i)) & 3).long()
                error = error + errors[i][:, left].gather(0, level[None])[0]
            better = error < best[left]
            at = left[better]
            best[at], found[at] = error[better], entry[better]
    return found


def entry_levels(entries: Tensor) -> Tensor:
    """int32 `[8 * n, ...]`: the levels of the rows of `entries` `[n, ...]`."""
    return torch.stack([(entries >> (2 * i)) & 3 for i in range(8)], dim=1).flatten(0, 1)


def refit(x: Tensor, weights: Tensor, numbers: Tensor, away: Tensor, scale: Tensor) -> Tensor:
    """The best scale for `numbers` where an octet is `away` from its own levels, else `scale`."""
    sum_qx, sum_q2 = added(lambda v: (weights * numbers * v, weights * numbers * numbers), x)
    better = away & (sum_qx > 0) & (sum_q2 > 0)
    return torch.where(better, sum_qx / sum_q2, scale)
