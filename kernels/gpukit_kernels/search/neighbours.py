"""The rows of a codebook near each point of its lattice, for the types that name rows.

A group of values is rounded to levels, a point: eight levels of 0..2 or four of 0..7, packed in two
or three bits each, the first lowest. A point that is a row stands for itself, any other for a list
of rows, the nearest by the sum of squared differences of levels, of equally near ones the lowest
first: all of the nearest few distances that there are. A codec tries the rows of the list.

An entry is an int32: a row's packed levels, above them its number; OFF_GRID is set where a list
holds it.

Source: iq2xs_init_impl and iq3xs_init_impl in llama.cpp's ggml-quants.c.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels import grids

# Distances that a list goes to.
DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3, "IQ1_S": 3}
# Entries go by so many; the last ones of a list are filled up with its first.
PART = 16
FOUR = 4
ROW_SHIFT = 16
OFF_GRID = 1 << 27
LEVELS = (1 << ROW_SHIFT) - 1
# How many parts a list has, below the number of the first.
COUNT_BITS = 8
# Points that are looked at together.
_SLAB = 512


class Neighbours(NamedTuple):
    """int32 on one device.

    points   of each packed point its own entry; of one that is no row -1 less (the number of its
             list's first part << COUNT_BITS | how many parts there are)
    entries  `[parts, PART]`, or of another size
    """

    points: Tensor
    entries: Tensor


@cache
def neighbours(name: str, device: torch.device, part: int = PART) -> Neighbours:
    """The neighbours in the codebook `name`, one of DISTANCES, in parts of `part` entries."""
    if device.type != "cpu":
        return Neighbours(*(t.to(device) for t in neighbours(name, torch.device("cpu"), part)))
    levels = _levels(name)
    size, bits, top = form(name)
    shifts = torch.arange(0, bits * size, bits)
    digits = torch.arange((top + 1) ** size)[:, None] // (top + 1) ** torch.arange(size) % (top + 1)
    packed = _packed(digits, shifts)
    entries = _packed(levels, shifts) | (torch.arange(len(levels)) << ROW_SHIFT)
    points = torch.zeros(int(packed.max()) + 1, dtype=torch.int64)
    points[packed] = -1
    points[_packed(levels, shifts)] = entries
    off = points[packed] < 0
    counts, rows = _lists(digits[off], levels, DISTANCES[name])
    parts = (counts + part - 1) // part
    first = parts.cumsum(0) - parts
    points[packed[off]] = -1 - ((first << COUNT_BITS) | parts)
    begin = counts.cumsum(0) - counts
    lists = rows[begin].repeat_interleave(parts * part)
    within = torch.arange(len(rows)) - begin.repeat_interleave(counts)
    lists[(first * part).repeat_interleave(counts) + within] = rows
    return Neighbours(points.int(), (entries[lists] | OFF_GRID).int().view(-1, part))


@cache
def in_fours(name: str, device: torch.device) -> Tensor:
    """int32: points, zeros up to a multiple of four, and entries of `neighbours` in parts of FOUR,
    whose numbers count from the begin of all that."""
    points, entries = neighbours(name, torch.device("cpu"), FOUR)
    points = torch.nn.functional.pad(points, (0, -len(points) % FOUR))
    moved = points - (len(points) // FOUR << COUNT_BITS)
    return torch.cat([torch.where(points < 0, moved, points), entries.flatten()]).to(device)


def form(name: str) -> tuple[int, int, int]:
    """Of the codebook `name` how many levels a row has, bits of each in a point, the highest."""
    return (4, 3, 7) if name.startswith("IQ3") else (8, 2, 2)


def _levels(name: str) -> Tensor:
    """int64 `[rows, levels of a row]`: those of the codebook `name`."""
    size, _, _ = form(name)
    book = grids.grid(name, torch.device("cpu")).long()
    return (book[:, None] >> torch.arange(0, 16, 16 // size)) & ((1 << 16 // size) - 1)


def _packed(levels: Tensor, shifts: Tensor) -> Tensor:
    return (levels << shifts).sum(1)


def _lists(points: Tensor, levels: Tensor, distances: int) -> tuple[Tensor, Tensor]:
    """How many neighbours each of `points` `[n, levels]` has, and the rows of them all."""
    counts, found = [], []
    # Sums of small whole numbers: float32 has them exactly.
    rows = levels.float()
    for some in points.float().split(_SLAB):
        distance = some.square().sum(1)[:, None] + rows.square().sum(1) - 2 * some @ rows.T
        reached = torch.full((len(some), 1), -1.0)
        for _ in range(distances):
            further = torch.where(distance > reached, distance, torch.inf)
            reached = further.amin(1, keepdim=True)
        near = distance <= reached
        counts.append(near.sum(1))
        point, row = near.nonzero(as_tuple=True)
        # Points have few distances, so a stable sort by both leaves rows in their order.
        order = (point * 1024 + distance[near].long()).argsort(stable=True)
        found.append(row[order])
    return torch.cat(counts), torch.cat(found)
