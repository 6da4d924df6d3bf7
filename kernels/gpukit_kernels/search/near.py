"""Of the rows near a point the one that is nearest to the values that were rounded to it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit_kernels.cpu.trace import called, is_tracing
from gpukit_kernels.search.neighbours import COUNT_BITS, PART, Neighbours, form, neighbours

MOST = torch.finfo(torch.float32).max


def near_rows(
    point: Tensor,
    scale: Tensor,
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    book: str,
    lowest: Tensor | None = None,
) -> Tensor:
    """Entries, int32: of `point`, packed levels, its own, or that of its list with the least error,
    the first of several; the list's first where no error is finite.

    The error is the sum of weight * (scale * number - x)^2 over the row of the codebook `book`, of
    which `x` and `weights` are the elements, float32 and shaped as `point`, as `scale`. Levels
    stand for the numbers 2 * level + 1, or level + `lowest`, which is shaped so too.
    """
    table = neighbours(book, point.device)
    size, bits, top = form(book)
    if is_tracing():
        elements = f"(const vf[]){{{{{', '.join(['{}'] * size)}}}}}"
        stands = "2, splat_f(1)" if lowest is None else "1, {}"
        tables = f"{size}, {bits}, {{}}, {{}}"
        template = f"near_rows({tables}, {{}}, {{}}, {stands}, {elements}, {elements})"
        offset = () if lowest is None else (lowest,)
        return called(template, table, (point, scale, *offset, *x, *weights))
    found = table.points[point]
    off = found < 0
    some = [v.expand_as(point)[off] for v in (scale, *x, *weights)]
    levels = torch.arange(top + 1, dtype=torch.float32, device=point.device)
    if lowest is None:
        numbers = 2.0 * levels + 1.0
    else:
        numbers = levels + lowest.expand_as(point)[off][:, None]
    scaled = some[0][:, None] * numbers
    found[off] = _nearest(
        -1 - found[off], scaled, some[1 : 1 + size], some[1 + size :], table, bits
    )
    return found


def _nearest(
    place: Tensor,
    scaled: Tensor,
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    table: Neighbours,
    bits: int,
) -> Tensor:
    """Entries, int32 `[n]`, of the lists at `place`; `scaled` is scale * number, `[n, levels]`."""
    first, parts = (place >> COUNT_BITS).long(), (place & ((1 << COUNT_BITS) - 1)).long()
    which = torch.arange(len(place), device=place.device).repeat_interleave(parts)
    part = torch.arange(len(which), device=place.device) - (parts.cumsum(0) - parts)[which]
    entries = table.entries[first[which] + part]  # [parts, PART]
    error = torch.zeros_like(entries, dtype=torch.float32)
    for i, (value, weight) in enumerate(zip(x, weights, strict=True)):
        difference = scaled - value[:, None]
        terms = weight[:, None] * difference * difference
        level = (entries >> (bits * i)) & ((1 << bits) - 1)
        error += terms[which].gather(1, level.long())
    error = torch.where(error < MOST, error, MOST)
    least = torch.full_like(x[0], MOST).scatter_reduce(0, which, error.amin(1), "amin")
    at = part[:, None] * PART + torch.arange(PART, device=place.device)
    at = torch.where(error == least[which][:, None], at, len(table.entries) * PART).amin(1)
    nearest = torch.full_like(first, len(table.entries) * PART).scatter_reduce(0, which, at, "amin")
    return table.entries.flatten()[first * PART + nearest]
