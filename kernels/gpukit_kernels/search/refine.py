"""Levels improved one at a time, for searches that begin with a rounded division.

Each element in turn tries the level that fits best to the scale which the others give; up to five
sweeps over a group. Levels travel as one tensor an element, because each depends on those before.

Source: the ends of make_q3_quants and make_qp_quants in llama.cpp's ggml-quants.c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import nearest_int, nearest_level
from gpukit_kernels.stages import settle, stage

SWEEPS = 5
# Elements a stage takes: each waits for the one before, so a processor finds other work to do
# meanwhile only among other lanes, and few of those fit into its window beside many elements.
AT_ONCE = 2


class Sums(NamedTuple):
    """Weighted sums of x * level and level * level over the elements: scale = lx / l2."""

    lx: Tensor
    l2: Tensor


def low_byte(level: Tensor) -> Tensor:
    """float32: what remains of whole numbers in C's uint8."""
    return (level.to(torch.int32) & 0xFF).to(torch.float32)


def refined(
    x: Tensor,
    weights: Tensor | None,
    levels: tuple[Tensor, ...],
    sums: Sums,
    low: int | None,
    high: int,
) -> tuple[tuple[Tensor, ...], Sums]:
    """Better `levels`, float32 and one tensor an element of `x`, and their sums.

    New levels lie in `low`..`high`; with `low` None they have no lower end and are kept as bytes.
    `weights` are shaped as `x`, or None for x * x.
    """

    def sweep(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        *before, lx, l2 = state
        sums = Sums(lx, l2)
        found: list[Tensor] = []
        for i in range(0, len(before), AT_ONCE):
            some = slice(i, i + AT_ONCE)
            weight = None if weights is None else weights[some]
            better, sums = _improved(x[some], weight, tuple(before[some]), sums, low, high)
            found += better
        return (*found, *sums)

    # A level that changes changes the sums.
    *found, lx, l2 = settle(sweep, (*levels, *sums), watched=2, most=SWEEPS)
    return tuple(found), Sums(lx, l2)


@stage
def _improved(
    x: Tensor,
    weights: Tensor | None,
    levels: tuple[Tensor, ...],
    sums: Sums,
    low: int | None,
    high: int,
) -> tuple[tuple[Tensor, ...], Sums]:
    found = []
    for i, level in enumerate(levels):
        weight = x[i] * x[i] if weights is None else weights[i]
        weighted = weight * x[i]
        lx = sums.lx - weighted * level
        l2 = sums.l2 - weight * level * level
        ratio = x[i] * l2 / lx
        if low is None:
            new = nearest_int(ratio).clamp(max=high).to(torch.float32)
        else:
            new = nearest_level(ratio, low, high)
        new_lx = lx + weighted * new
        new_l2 = l2 + weight * new * new
        better = (lx > 0) & (new != level) & ((l2 if low is None else new_l2) > 0)
        better = better & (new_lx * new_lx * sums.l2 > sums.lx * sums.lx * new_l2)
        found.append(torch.where(better, low_byte(new) if low is None else new, level))
        sums = Sums(torch.where(better, new_lx, sums.lx), torch.where(better, new_l2, sums.l2))
    return tuple(found), sums
