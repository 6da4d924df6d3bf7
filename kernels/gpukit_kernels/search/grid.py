"""The search for scales of the types whose levels are rows of a codebook: IQ2 and IQ3.

x is about ±scale * (2 * level + 1). A block of 256 values has groups with a scale each, a group
rows of four or eight levels. Tiles are float32 `[256, lanes]`, rows int32 `[groups, rows, lanes]`,
entries of `neighbours`, scales `[groups, lanes]`.

Source: quantize_row_iq2_xxs_impl and its kin, iq2_find_best_neighbour and iq3_find_best_neighbour
in llama.cpp's ggml-quants.c.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, half_bits, nearest_int, root
from gpukit_kernels.search.common import added
from gpukit_kernels.search.near import near_rows
from gpukit_kernels.search.neighbours import OFF_GRID, ROW_SHIFT, form, neighbours
from gpukit_kernels.stages import stage


@dataclass(frozen=True)
class GridForm:
    """How a type is searched.

    book     the codebook
    group    values that share a scale
    tries    candidates on each side of the first, `step` levels apart
    least    a group whose largest value is below it counts as zero
    even     whether an octet has an even number of signs
    again    which rows are chosen again with the scale that is found, and of which groups: "off",
             those off the grid; "any", all of a group that has such a row; "all"
    """

    book: str
    group: int
    tries: int
    step: float
    least: float
    even: bool
    again: Literal["off", "any", "all"]

    @property
    def groups(self) -> int:
        return 256 // self.group

    @property
    def constants(self) -> tuple[int | float | bool | str, ...]:
        """What `grid_triton.py` takes of it: levels of a row, rows of a group, the others."""
        size = form(self.book)[0]
        rows = self.group // size
        return size, rows, self.tries, self.step, self.least, self.even, self.again


class Values(NamedTuple):
    """What is searched, float32 `[256, lanes]` each."""

    x: Tensor  # without the signs that are stored
    weights: Tensor
    roots: Tensor  # of the weights: what errors count in the choice of a row
    products: Tensor  # weights * x


class GridSearch(NamedTuple):
    """What has been accepted so far."""

    scale: Tensor
    best: Tensor
    rows: Tensor


def grid_values(x: Tensor, weights: Tensor, *, even: bool) -> tuple[Values, Tensor]:
    """What is searched, and the signs, int32 `[32, lanes]`, a bit a value below zero.

    With `even` an octet has an even number of them: else the value that counts least has a sign
    that is not its own, and is below zero here.
    """
    found, signs = _signs(x, weights, even)
    return Values(found, weights, *_weighted(found, weights)), signs


@stage
def _signs(x: Tensor, weights: Tensor, even: bool) -> tuple[Tensor, Tensor]:
    octets = x.view(32, 8, -1)
    below = ~(octets >= 0)
    found = torch.where(below, -octets, octets)
    bits = below.to(torch.int32)
    signs = bits[:, 0]
    for i in range(1, 8):
        signs = signs | (bits[:, i] << i)
    if not even:
        return found.view(256, -1), signs
    count = bits[:, 0]
    for i in range(1, 8):
        count = count ^ bits[:, i]
    at = _least((weights * x * x).view(32, 8, -1))
    odd = count != 0
    turned = [torch.where(odd & (at == i), -found[:, i], found[:, i]) for i in range(8)]
    bit = torch.where(odd, torch.ones_like(signs) << at, torch.zeros_like(signs))
    return torch.stack(turned, dim=1).view(256, -1), signs ^ bit


def _least(octets: Tensor) -> Tensor:
    """int32 `[32, lanes]`: which of eight, `[32, 8, lanes]`, is the least, the first of several."""
    least, at = octets[:, 0], torch.zeros_like(octets[:, 0], dtype=torch.int32)
    for i in range(1, 8):
        less = octets[:, i] < least
        least = torch.where(less, octets[:, i], least)
        at = torch.where(less, torch.full_like(at, i), at)
    return at


@stage
def squares(x: Tensor) -> Tensor:
    """What values count where no importance is given."""
    return x * x


@stage
def _weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return root(weights), weights * x


@stage
def grid_top(x: Tensor, kind: GridForm) -> Tensor:
    """The largest value of each group, float32 `[groups, lanes]`; a NaN gives way to what is
    behind it."""
    groups = x.view(kind.groups, kind.group, -1)
    top = groups[:, 0]
    for i in range(1, kind.group):
        top = torch.where(top > groups[:, i], top, groups[:, i])
    return top


def grid_search(values: Values, top: Tensor, scale: Tensor, kind: GridForm) -> GridSearch:
    """The best scales, which may be below zero, and rows, of candidates that make of `top`, float32
    `[groups, lanes]`, the highest level or nearly that; `scale` where none is accepted."""
    best = _begin(scale, kind)
    highest = float(2 * form(kind.book)[2] + 1)
    for k in range(-kind.tries, kind.tries + 1):
        stretch = torch.tensor(kind.step) * torch.tensor(float(k)) + highest
        rows = _tried(values.x, values.roots, top, stretch, kind)
        best = _kept(values.products, values.weights, rows, best, kind)
    rows = _again(values.x, values.roots, best, kind)
    return _fitted(values.products, values.weights, rows, best, kind)


@stage
def _begin(scale: Tensor, kind: GridForm) -> GridSearch:
    rows = kind.group // form(kind.book)[0]
    entry = int(neighbours(kind.book, scale.device).points[0])
    # The first row counts as off the grid where a group has to be looked at again.
    entry |= OFF_GRID if kind.again == "any" else 0
    begun = torch.zeros_like(scale, dtype=torch.int32) + entry
    return GridSearch(scale.clone(), torch.zeros_like(scale), torch.stack([begun] * rows, dim=1))


@stage
def _tried(x: Tensor, roots: Tensor, top: Tensor, stretch: Tensor, kind: GridForm) -> Tensor:
    """The rows of a candidate, `stretch` (0-d float32) over the largest value."""
    inverse = stretch / top
    return _rows(x, roots, inverse, divide(1.0, inverse), kind)


def _rows(x: Tensor, roots: Tensor, inverse: Tensor, scale: Tensor, kind: GridForm) -> Tensor:
    size, bits, top = form(kind.book)
    form_of = (kind.groups, kind.group // size, size, x.shape[-1])
    elements = x.view(form_of).unbind(2)
    levels = [nearest_int(0.5 * (inverse[:, None] * v - 1.0)).clamp(0, top) for v in elements]
    point = levels[0]
    for i in range(1, size):
        point = point | (levels[i] << (bits * i))
    across = scale[:, None].expand(point.shape)
    return near_rows(point, across, elements, roots.view(form_of).unbind(2), kind.book)


def _sums(products: Tensor, weights: Tensor, rows: Tensor, kind: GridForm) -> tuple[Tensor, ...]:
    """Of each group the sums of weight * x * number and of weight * number * number."""
    size, bits, _ = form(kind.book)
    shifts = torch.arange(0, bits * size, bits, dtype=torch.int32, device=rows.device)
    levels = (rows[:, :, None] >> shifts[:, None]) & ((1 << bits) - 1)
    numbers = 2.0 * torch.arange(1 << bits, dtype=torch.float32, device=rows.device) + 1.0
    number, weighted, product = (
        part.reshape(kind.groups, kind.group, -1).transpose(0, 1)
        for part in (numbers[levels], weights, products)
    )
    return added(lambda v: (v * number, weighted * number * number), product)


@stage
def _kept(
    products: Tensor, weights: Tensor, rows: Tensor, best: GridSearch, kind: GridForm
) -> GridSearch:
    """The better of `best` and the candidate with `rows`."""
    sum_qx, sum_q2 = _sums(products, weights, rows, kind)
    better = (sum_q2 > 0) & (sum_qx * sum_qx > best.best * sum_q2)
    scale = sum_qx / sum_q2
    return GridSearch(
        torch.where(better, scale, best.scale),
        torch.where(better, scale * sum_qx, best.best),
        torch.where(better[:, None], rows, best.rows),
    )


@stage
def _again(x: Tensor, roots: Tensor, best: GridSearch, kind: GridForm) -> Tensor:
    """The rows that the scale which has been found leads to."""
    return _rows(x, roots, divide(1.0, best.scale), best.scale, kind)


@stage
def _fitted(
    products: Tensor, weights: Tensor, fresh: Tensor, best: GridSearch, kind: GridForm
) -> GridSearch:
    above = best.scale > 0
    off = best.rows & OFF_GRID
    found = above & (off.transpose(0, 1).amax(0) != 0)
    rows = torch.where((above[:, None] & (off != 0)), fresh, best.rows)
    if kind.again != "off":
        found = above if kind.again == "all" else found
        rows = torch.where(found[:, None], fresh, best.rows)
    sum_qx, sum_q2 = _sums(products, weights, rows, kind)
    scale = torch.where(found & (sum_q2 > 0), sum_qx / sum_q2, best.scale)
    return GridSearch(scale, best.best, rows)


@stage
def grid_ended(
    best: GridSearch, signs: Tensor, top: Tensor, kind: GridForm
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, none below zero, numbers of rows, int32 `[256 / levels of a row, lanes]`, and signs;
    all are 0 of groups that count as zero."""
    some = ~(top < kind.least)
    scale = torch.where(some, best.scale.abs(), torch.zeros_like(best.scale))
    numbers = (best.rows >> ROW_SHIFT) & ((OFF_GRID >> ROW_SHIFT) - 1)
    numbers = torch.where(some[:, None], numbers, torch.zeros_like(numbers))
    octets = signs.view(kind.groups, -1, signs.shape[-1])
    octets = torch.where((best.scale < 0)[:, None], octets ^ 255, octets)
    octets = torch.where(some[:, None], octets, torch.zeros_like(octets))
    return scale, numbers.flatten(0, 1), octets.flatten(0, 1)


def grid_codes(scale: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The bits of d as fp16, which is `factor` times what the groups' codes are taken from, the
    codes, int32 0..15 `[groups, lanes]`, and whether any scale is not zero."""
    top = torch.zeros_like(scale[0])
    for v in scale:
        top = torch.where(top > v, top, v)
    some = top != 0
    d = top / torch.full_like(top, 31.0)
    bits = torch.where(some, half_bits(d * factor), 0)
    code = nearest_int(0.5 * (divide(1.0, d) * scale - 1.0)).clamp(0, 15)
    return bits, torch.where(some, code, torch.zeros_like(code)), some


def signs_and_code(signs: Tensor, code: Tensor) -> Tensor:
    """int32 `[8, 4, lanes]`, bytes of a word for each 32 values: seven of the eight signs of each
    octet, of `[32, lanes]`, and on top the code of the scale."""
    octets = signs.view(8, 4, -1) & 127
    word = code << 28
    for i in range(4):
        word = word | (octets[:, i] << (7 * i))
    return torch.stack([(word >> (8 * i)) & 0xFF for i in range(4)], dim=1)


def grid_encoded(
    x: Tensor, weights: Tensor, kind: GridForm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`grid_ended` of float32 `x`, each of whose values counts as `weights` say, and the groups'
    largest values, float32 `[groups, lanes]`."""
    values, signs = grid_values(x, weights, even=kind.even)
    top = grid_top(values.x, kind)
    best = grid_search(values, top, _first_scale(top, kind), kind)
    return *grid_ended(best, signs, top, kind), top


@stage
def _first_scale(top: Tensor, kind: GridForm) -> Tensor:
    return top / torch.full_like(top, float(2 * form(kind.book)[2] + 1))
