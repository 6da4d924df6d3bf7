"""Perplexity and its error, of all tokens and while they come in."""

import math
from dataclasses import dataclass

import numpy as np

from gpukit.evaluation.scoring import Floats


@dataclass(frozen=True)
class Mean:
    """A mean, and the standard error of it; 0 where there is only one value."""

    value: float
    error: float


def mean(values: Floats) -> Mean:
    """The mean of `values`, at least one of them."""
    value = float(values.mean())
    if len(values) < 2:
        return Mean(value, 0.0)
    if not math.isfinite(value):
        return Mean(value, math.nan)
    return Mean(value, float(np.sqrt(values.var() / (len(values) - 1))))


def perplexity(nll: Floats) -> Mean:
    """exp of the mean of `nll`, with its error to first order."""
    found = mean(nll)
    value = exp(found.value)
    return Mean(value, value * found.error)


def exp(value: float) -> float:
    """e to the power of `value`; infinity where that is too large for a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


@dataclass
class Sums:
    """Sums over pairs of values (a, b) as they come, for means, errors and the covariance."""

    count: int = 0
    a: float = 0.0
    b: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0

    def add(self, a: Floats, b: Floats | None = None) -> None:
        """Take in more values; without `b` those are 0."""
        self.count += len(a)
        self.a += float(a.sum())
        self.aa += float(a @ a)
        if b is not None:
            self.b += float(b.sum())
            self.bb += float(b @ b)
            self.ab += float(a @ b)

    def mean_a(self) -> Mean:
        return self._mean(self.a, self.aa)

    def mean_b(self) -> Mean:
        return self._mean(self.b, self.bb)

    def difference(self) -> Mean:
        """That of a - b, whose error knows that they vary together."""
        return self._mean(self.a - self.b, self.aa + self.bb - 2 * self.ab)

    def perplexity(self) -> Mean:
        """That of the values a."""
        found = self.mean_a()
        value = exp(found.value)
        return Mean(value, value * found.error)

    def _mean(self, total: float, squares: float) -> Mean:
        value = total / self.count
        variance = max(squares / self.count - value**2, 0.0)
        return Mean(value, math.sqrt(variance / max(self.count - 1, 1)))
