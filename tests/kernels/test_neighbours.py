"""Lists of the rows of a codebook near each point of its lattice, beside plain sorting."""

import itertools

import pytest
import torch

from gpukit_kernels import grids
from gpukit_kernels.search.neighbours import (
    COUNT_BITS,
    DISTANCES,
    LEVELS,
    OFF_GRID,
    PART,
    ROW_SHIFT,
    in_fours,
    neighbours,
)

CPU = torch.device("cpu")
# Of each codebook the points that are looked at: these and every so many of all.
EVERY = 997
# Points that are no row, and the rows in all lists.
COUNTS = {
    "IQ2_XXS": (6305, 113157),
    "IQ2_XS": (6049, 181721),
    "IQ2_S": (5537, 44716),
    "IQ3_XXS": (3840, 18985),
    "IQ3_S": (3584, 24733),
    "IQ1_S": (4513, 327721),
}


def rows_of(name: str) -> list[tuple[int, ...]]:
    size = 4 if name.startswith("IQ3") else 8
    book = grids.grid(name, CPU).tolist()
    bits = 16 // size
    return [tuple((row >> (bits * i)) & ((1 << bits) - 1) for i in range(size)) for row in book]


def packed(levels: tuple[int, ...]) -> int:
    bits = 2 if len(levels) == 8 else 3
    return sum(level << (bits * i) for i, level in enumerate(levels))


def lattice(name: str) -> list[tuple[int, ...]]:
    size = 4 if name.startswith("IQ3") else 8
    return [point[::-1] for point in itertools.product(range(3 if size == 8 else 8), repeat=size)]


def list_of(name: str, point: tuple[int, ...]) -> list[int]:
    """The entries of a point that is no row."""
    found = neighbours(name, CPU)
    place = -1 - int(found.points[packed(point)])
    assert place >= 0
    first, parts = place >> COUNT_BITS, place & ((1 << COUNT_BITS) - 1)
    return found.entries[first : first + parts].flatten().tolist()


@pytest.mark.parametrize("name", DISTANCES)
def test_a_list_has_the_nearest_rows_in_order(name: str) -> None:
    rows = rows_of(name)
    for point in sorted({*lattice(name)[::EVERY]} - {*rows}):
        near = sorted(
            (sum((a - b) ** 2 for a, b in zip(row, point, strict=True)), number)
            for number, row in enumerate(rows)
        )
        reached = sorted({distance for distance, _ in near})[: DISTANCES[name]]
        wanted = [number for distance, number in near if distance in reached]
        entries = list_of(name, point)
        filled = wanted + wanted[:1] * (-len(wanted) % PART)
        assert [(entry & ~OFF_GRID) >> ROW_SHIFT for entry in entries] == filled
        assert all(entry & OFF_GRID for entry in entries)
        assert [entry & LEVELS for entry in entries] == [packed(rows[n]) for n in filled]


@pytest.mark.parametrize("name", DISTANCES)
def test_a_row_stands_for_itself(name: str) -> None:
    points = neighbours(name, CPU).points
    for number, row in enumerate(rows_of(name)):
        assert points[packed(row)] == packed(row) | (number << ROW_SHIFT)


@pytest.mark.parametrize("name", DISTANCES)
def test_no_list_is_lost(name: str) -> None:
    found = neighbours(name, CPU)
    off, count = COUNTS[name]
    assert int((found.points < 0).sum()) == off
    # What fills a list's last part up is its first entry once more.
    begins = (-1 - found.points[found.points < 0]) >> COUNT_BITS
    first = torch.zeros(len(found.entries), dtype=torch.int64)
    first[begins.long()] = begins.long()
    first = first.cummax(0).values
    again = found.entries == found.entries[first, :1]
    assert found.entries.numel() - int(again.sum()) + off == count


@pytest.mark.parametrize("name", DISTANCES)
def test_they_are_made_once(name: str) -> None:
    assert neighbours(name, CPU) is neighbours(name, torch.device("cpu"))


def test_lists_go_by_fours_too() -> None:
    points, entries = neighbours("IQ3_XXS", CPU)
    fours = in_fours("IQ3_XXS", CPU)
    on = points >= 0
    assert torch.equal(fours[: len(points)][on], points[on])
    for point in (~on).nonzero().flatten()[::97].tolist():
        place, four = (-1 - int(found[point]) for found in (points, fours))
        mine = fours[4 * (four >> COUNT_BITS) :][: 4 * (four & 255)]
        theirs = entries[place >> COUNT_BITS :][: place & 255].flatten()
        assert torch.equal(mine, theirs[: len(mine)])
        assert (theirs[len(mine) :] == theirs[0]).all()
