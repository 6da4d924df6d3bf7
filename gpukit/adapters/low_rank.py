"""What two weights differ by, as B·A of a given rank: the best one, by singular values.

Of D = tuned - base, `[rows, width]`, with D ≈ U·S·Vᵀ of `rank` singular values, B is U·√S and A is
√S·Vᵀ. D is made a slab of rows at a time, and kept only where it is small.

Where one side has no more than `EXACT` values, V (or U) are the eigenvectors of DᵀD (or DDᵀ) in
float64: exact to 1e-8 of the largest singular value. Otherwise they are those of a random subspace
that is multiplied with DᵀD `POWERS` times (Halko, Martinsson, Tropp 2011): exact where D has no
higher rank, and with the energy that is really kept told where it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from gpukit.adapters.values import Values

EXACT = 1024
# Directions more than the rank, how often they are multiplied with DᵀD, and where they begin.
OVER, POWERS, SEED = 16, 4, 0
# Values of a slab, and bytes of a difference that is kept between passes.
SLAB, KEPT = 1 << 24, 1 << 30


@dataclass(frozen=True)
class Factors:
    """B `[rows, rank]` and A `[rank, width]` in float32 on the CPU; the energies (sums of squares)
    of what they keep, of the difference, and of the base's weight; and whether the decomposition
    was the exact one."""

    b: Tensor
    a: Tensor
    kept: float
    energy: float
    weight: float
    exact: bool


class Difference:
    """tuned - base on `device`, float32, subtracted in float64 where one of them is stored so.

    Its `energy` and that of the base's `weight` are known from the start: all rows have been read
    once. `AdapterError` for numbers that are NaN or infinite.
    """

    def __init__(self, tuned: Values, base: Values, device: torch.device) -> None:
        self.rows, self.width = tuned.shape[0], prod(tuned.shape[1:])
        self.device = device
        self._tuned, self._base = tuned, base
        self._kept: list[tuple[int, Tensor]] | None = None
        self.energy = self.weight = 0.0
        kept: list[tuple[int, Tensor]] | None = [] if 4 * self.rows * self.width <= KEPT else None
        for at, slab, weight in self._read():
            self.energy += slab.double().square().sum().item()
            self.weight += weight.double().square().sum().item()
            if kept is not None:
                kept.append((at, slab))
        self._kept = kept

    def _read(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The first row of a slab, its difference, and the base's rows."""
        wide = "F64" in (self._tuned.dtype, self._base.dtype)
        dtype = torch.float64 if wide else torch.float32
        step = max(1, SLAB // max(1, self.width))
        for at in range(0, self.rows, step):
            count = min(step, self.rows - at)
            tuned = self._tuned.read_rows(at, count, dtype).to(self.device)
            base = self._base.read_rows(at, count, dtype).to(self.device)
            yield at, (tuned - base).float().view(count, -1), base

    def slabs(self) -> Iterator[tuple[int, Tensor]]:
        """Rows `[count, width]`, with the number of the first of them."""
        if self._kept is not None:
            return iter(self._kept)
        return ((at, slab) for at, slab, _ in self._read())

    def times(self, v: Tensor) -> Tensor:
        """D·v, `[rows, k]`."""
        return torch.cat([slab.to(v.dtype) @ v for _, slab in self.slabs()])

    def transposed_times(self, u: Tensor) -> Tensor:
        """Dᵀ·u, `[width, k]`."""
        found = u.new_zeros(self.width, u.shape[1])
        for at, slab in self.slabs():
            found += slab.to(u.dtype).t() @ u[at : at + len(slab)]
        return found


def factorise(d: Difference, rank: int) -> Factors:
    """The factors of `d`; where it has fewer rows or columns than `rank`, the rest is zero."""
    exact = min(d.rows, d.width) <= EXACT
    if exact and d.width > d.rows:
        u = _eigenvectors(_gram_of_rows(d), rank)
        a, b, kept = _factors(u, d.transposed_times(u), rank)
    else:
        v = _eigenvectors(_gram(d), rank) if exact else _subspace(d, rank)
        b, a, kept = _factors(v, d.times(v), rank)
    # Rounding alone may make a sum of squares a bit larger than that of all.
    return Factors(
        b.contiguous(), a.t().contiguous(), min(kept, d.energy), d.energy, d.weight, exact
    )


def _gram(d: Difference) -> Tensor:
    found = torch.zeros(d.width, d.width, dtype=torch.float64, device=d.device)
    for _, slab in d.slabs():
        rows = slab.double()
        found += rows.t() @ rows
    return found


def _gram_of_rows(d: Difference) -> Tensor:
    """DDᵀ of one that is at most `EXACT` rows high, a slab of columns at a time."""
    rows = torch.cat([slab for _, slab in d.slabs()])
    found = torch.zeros(d.rows, d.rows, dtype=torch.float64, device=d.device)
    for part in torch.split(rows, max(1, SLAB // max(1, d.rows)), dim=1):
        columns = part.double()
        found += columns @ columns.t()
    return found


def _eigenvectors(gram: Tensor, count: int) -> Tensor:
    """Those of the largest eigenvalues, `[n, min(n, count)]`, the largest first."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors.flip(1)[:, :count]


def _subspace(d: Difference, rank: int) -> Tensor:
    """`[width, k]`, orthonormal: nearly all that the largest singular values belong to."""
    count = min(rank + OVER, d.width, d.rows)
    generator = torch.Generator().manual_seed(SEED)
    v = torch.randn(d.width, count, generator=generator).to(d.device)
    for _ in range(POWERS + 1):
        v = _orthonormal(d.transposed_times(_orthonormal(d.times(v))))
    return v


def _orthonormal(values: Tensor) -> Tensor:
    found: Tensor = torch.linalg.qr(values).Q
    return found


def _factors(basis: Tensor, image: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """For D·basis = image: U·√S and V·√S, each with `rank` columns, and the sum of S²."""
    q, r = torch.linalg.qr(image.double())
    left, values, right = torch.linalg.svd(r)
    count = min(rank, len(values))
    roots = values[:count].sqrt()
    found = []
    for columns in (q @ left[:, :count], basis.double() @ right.t()[:, :count]):
        padded = columns.new_zeros(len(columns), rank)
        padded[:, :count] = columns * roots
        found.append(padded.float().cpu())
    return found[0], found[1], values[:count].square().sum().item()
