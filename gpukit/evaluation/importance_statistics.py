"""What a collected importance is like, a tensor at a time, as llama-imatrix --show-statistics says.

m are the mean squares of a tensor's columns, v the mean values, or m where those are not known;
experts that nothing came to are left out. Everything is taken in float64.

    sum_sq           sum of m                      least, most  of m
    mean, std_deviation, skewness, kurtosis        of v
    active           share of m above 1e-5         zd           share of m above mean + deviation
    h_norm           entropy of m / sum of m, in percent of the most that it can be
    gain             root mean m over that of the tensor of that name in the layer before
    l2_dist, cossim, pearson, covariance           between v and those of the layer before

Where there is no layer before, or nothing to divide by, a value is NaN. Sources: llama.cpp,
tools/imatrix/imatrix.cpp; least to zd as llama.cpp printed them until August 2026.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpukit.formats.imatrix import Floats, Sums
from gpukit.formats.imatrix_writer import SCHEMA

Doubles = npt.NDArray[np.float64]
NAN = float("nan")
LAYER = re.compile(r"^blk\.(\d+)\.")
ACTIVE = 1e-5
# Below these llama.cpp takes a share, a deviation or a sum for nothing.
LEAST_SHARE, LEAST_DEVIATION, LEAST_SUM = 1e-10, 1e-10, 1e-10


@dataclass(frozen=True)
class TensorStatistics:
    """The statistics of one weight."""

    tensor: str
    sum_sq: float
    mean: float
    elements: int
    std_deviation: float
    skewness: float
    kurtosis: float
    h_norm: float
    least: float
    most: float
    active: float
    zd: float
    gain: float = NAN
    l2_dist: float = NAN
    cossim: float = NAN
    pearson: float = NAN
    covariance: float = NAN

    @property
    def layer(self) -> int | None:
        """The number of its layer."""
        found = LAYER.match(self.tensor)
        return int(found[1]) if found else None

    def values(self) -> Floats:
        """float32 `[12]`: what a file holds of it, in the order of `SCHEMA`."""
        with np.errstate(over="ignore"):
            return np.array([getattr(self, name) for name in SCHEMA], np.float32)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def statistics(entries: Mapping[str, Sums]) -> dict[str, TensorStatistics]:
    """The statistics of every weight by name, layers in order; weights without data have none."""
    found: dict[str, TensorStatistics] = {}
    with np.errstate(all="ignore"):  # what is no sum of squares gives NaN
        for name in sorted(entries, key=_place):
            if not entries[name].counts.any():
                continue
            alone = _alone(name, entries[name])
            before = _before(name, found)
            found[name] = alone if before is None else _beside(alone, before, entries)
    return found


def _place(name: str) -> tuple[bool, int, str]:
    layer = LAYER.match(name)
    return (False, int(layer[1]), name) if layer else (True, 0, name)


def _before(name: str, found: Mapping[str, TensorStatistics]) -> TensorStatistics | None:
    """The nearest earlier layer's tensor of the same name."""
    match = LAYER.match(name)
    if match is None:
        return None
    for layer in range(int(match[1]) - 1, -1, -1):
        if earlier := found.get(f"blk.{layer}.{name[match.end() :]}"):
            return earlier
    return None


def _alone(name: str, sums: Sums) -> TensorStatistics:
    there = sums.counts > 0
    counts = sums.counts[there, None].astype(np.float64)
    squares = (sums.squares[there] / counts).reshape(-1)
    values = squares if sums.sums is None else (sums.sums[there] / counts).reshape(-1)
    off = values - values.mean()
    second = float((off**2).mean())
    deviation = float(np.sqrt(second))
    spread = deviation > LEAST_DEVIATION
    return TensorStatistics(
        tensor=name,
        sum_sq=float(squares.sum()),
        mean=float(values.mean()),
        elements=values.size,
        std_deviation=deviation,
        skewness=float((off**3).mean()) / second**1.5 if spread else 0.0,
        kurtosis=float((off**4).mean()) / second**2 - 3 if spread else 0.0,
        h_norm=_entropy(squares),
        least=float(squares.min()),
        most=float(squares.max()),
        active=float((squares > ACTIVE).mean()),
        zd=float((squares > squares.mean() + squares.std()).mean()),
    )


def _entropy(squares: Doubles) -> float:
    if squares.size < 2:
        return NAN
    total = squares.sum()
    shares = squares / total if total > 0 else np.zeros(0)
    shares = shares[shares > LEAST_SHARE]
    return float(-100 * (shares * np.log2(shares)).sum() / np.log2(squares.size))


def _beside(
    here: TensorStatistics, before: TensorStatistics, entries: Mapping[str, Sums]
) -> TensorStatistics:
    one, other = entries[here.tensor], entries[before.tensor]
    known = one.sums is not None and other.sums is not None
    a, b = _averages(one, known), _averages(other, known)
    if a.size != b.size:
        return here
    there = np.isfinite(a) & np.isfinite(b)
    a, b = a[there], b[there]
    if not a.size:
        return here
    x, y = a - a.mean(), b - b.mean()
    if before.sum_sq > LEAST_SUM:
        gain = np.sqrt(here.sum_sq / here.elements / (before.sum_sq / before.elements))
    else:
        gain = 1.0 if here.sum_sq <= LEAST_SUM else NAN
    return TensorStatistics(
        **{
            **asdict(here),
            "gain": float(gain),
            "l2_dist": float(np.sqrt(((a - b) ** 2).sum())),
            "cossim": _cosine(a, b),
            "pearson": _cosine(x, y),
            "covariance": float((x * y).mean()) if a.size > 1 else NAN,
        }
    )


def _averages(sums: Sums, values: bool) -> Doubles:
    """float64 `[matrices * columns]`, NaN where nothing came; of the values or of their squares."""
    found = sums.sums if values and sums.sums is not None else sums.squares
    counts = np.where(sums.counts > 0, sums.counts, NAN)[:, None]
    averages: Doubles = (found / counts).reshape(-1)
    return averages


def _cosine(a: Doubles, b: Doubles) -> float:
    one, other = float((a * a).sum()), float((b * b).sum())
    if one > 0 and other > 0:
        return float(np.clip((a * b).sum() / (np.sqrt(one) * np.sqrt(other)), -1, 1))
    return NAN if one == other else 0.0
