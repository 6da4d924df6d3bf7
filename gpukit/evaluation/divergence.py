"""How far a model's expectations are from a reference's, as llama-perplexity --kl-divergence tells.

Means have standard errors; a percentile lies between its two neighbours in proportion.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpukit.evaluation.perplexity import Mean, exp, mean, perplexity
from gpukit.evaluation.scoring import Floats, Likelihood, Passes, Scores
from gpukit.formats.logits import LogitsFile

# Shares at which the distributions are told, and the ends of their names in JSON.
SHARES = {
    "999": 0.999, "99": 0.99, "95": 0.95, "90": 0.9, "75": 0.75, "median": 0.5, "25": 0.25,
    "10": 0.1, "05": 0.05, "01": 0.01, "001": 0.001,
}  # fmt: skip
# llama-perplexity leaves out what its reference holds for less likely than exp of this.
LEAST_LOG = -16.0


@dataclass(frozen=True)
class Distribution:
    """Some values: mean, extremes, and percentiles by their names, `SHARES`."""

    mean: Mean
    max: float
    min: float
    at: Mapping[str, float]

    @staticmethod
    def of(values: Floats) -> "Distribution":
        found = np.quantile(values, list(SHARES.values()))
        at = dict(zip(SHARES, found.tolist(), strict=True))
        return Distribution(mean(values), float(values.max()), float(values.min()), at)

    def as_json(self, name: str) -> dict[str, float]:
        """The numbers by `name` with an ending each; the mean has none."""
        return {
            name: self.mean.value,
            f"{name}_error": self.mean.error,
            f"{name}_max": self.max,
            **{f"{name}_{end}": value for end, value in self.at.items()},
            f"{name}_min": self.min,
        }


@dataclass(frozen=True)
class Divergence:
    """A model beside its reference, over the same tokens.

    base, log_ratio, ratio, difference   perplexity of the reference; ln(PPL / PPL of the
                                         reference), its exponential, and the difference
    correlation                          of the two in their nll
    kld                                  Kullback-Leibler divergence, in nats
    dp, dp_rms                           probability of the text's token less the reference's
    same_top                             share of tokens where both expect the same
    """

    base: Mean
    correlation: float
    log_ratio: Mean
    ratio: Mean
    difference: Mean
    kld: Distribution
    dp: Distribution
    dp_rms: Mean
    same_top: Mean

    @staticmethod
    def of(scores: Scores) -> "Divergence":
        """That of tokens with a reference."""
        # A token without any probability makes infinite sums, and differences of them.
        with np.errstate(invalid="ignore"):
            return Divergence._of(scores)

    @staticmethod
    def _of(scores: Scores) -> "Divergence":
        assert scores.nll_base is not None
        assert scores.kld is not None
        assert scores.same_top is not None
        nll, nll_base, n = scores.nll, scores.nll_base, len(scores)
        ours, base = perplexity(nll), perplexity(nll_base)
        log_ratio = mean(nll - nll_base)
        ratio = exp(log_ratio.value)
        covariance = float(((nll - nll.mean()) * (nll_base - nll_base.mean())).mean())
        spread = float(nll.std() * nll_base.std())
        both = ours.value * base.value * covariance / max(n - 1, 1)
        variance = ours.error**2 + base.error**2 - 2 * both
        dp = np.exp(-nll) - np.exp(-nll_base)
        squares = mean(dp * dp)
        rms = math.sqrt(squares.value)
        return Divergence(
            base=base,
            correlation=covariance / spread if spread else 1.0,
            log_ratio=log_ratio,
            ratio=Mean(ratio, ratio * log_ratio.error),
            difference=Mean(ours.value - base.value, math.sqrt(max(variance, 0.0))),
            kld=Distribution.of(scores.kld),
            dp=Distribution.of(dp),
            dp_rms=Mean(rms, squares.error / (2 * rms) if rms else 0.0),
            same_top=mean(scores.same_top.astype(np.float64)),
        )

    def as_json(self) -> dict[str, float]:
        """All of it; probabilities and shares from 0 to 1."""
        pairs = {
            "perplexity_base": self.base,
            "log_ratio": self.log_ratio,
            "ratio": self.ratio,
            "difference": self.difference,
            "dp_rms": self.dp_rms,
            "same_top": self.same_top,
        }
        found = {"correlation": self.correlation}
        for name, pair in pairs.items():
            found |= {name: pair.value, f"{name}_error": pair.error}
        return {**found, **self.kld.as_json("kld"), **self.dp.as_json("dp")}


@dataclass
class Slice:
    """A model's logits behind some tokens of a window, float32 `[rows, vocab_size]`; `where` and
    the model's `adapters` are for messages."""

    logits: Tensor
    where: str
    adapters: Sequence[str] = ()

    @cached_property
    def likelihood(self) -> Likelihood:
        """`CheckpointError` for logits that are no numbers."""
        return Likelihood.of(self.logits, self.where, self.adapters)


def alone(slices: Iterator[Slice], targets: list[int]) -> Scores:
    """The scores of a window's tokens without a reference; errors as `Slice.likelihood`."""
    found = [
        part.likelihood.nll(part.logits, wanted) for part, wanted in _with_targets(slices, targets)
    ]
    return Scores(torch.cat(found).cpu().numpy())


def _with_targets(slices: Iterator[Slice], targets: list[int]) -> Iterator[tuple[Slice, Tensor]]:
    at = 0
    for part in slices:
        rows = len(part.logits)
        yield part, torch.tensor(targets[at : at + rows], device=part.logits.device)
        at += rows


class Base(Protocol):
    """A reference: what a window's tokens score beside it, whose logits by the model come in
    slices; `CheckpointError` for logits that are no numbers."""

    def scores(self, number: int, slices: Iterator[Slice], targets: list[int]) -> Scores: ...


@dataclass(frozen=True)
class ModelBase:
    """A model as the reference: its `passes` over the same windows; `name` is for messages."""

    passes: Passes
    name: str

    @torch.inference_mode()
    def scores(self, number: int, slices: Iterator[Slice], targets: list[int]) -> Scores:
        """The scores of window `number`."""
        pairs = zip(self.passes.logits(number), _with_targets(slices, targets), strict=True)
        return _collected(
            [
                _beside(
                    Slice(theirs.to(ours.logits.device), self.name, self.passes.adapters),
                    ours,
                    wanted,
                )
                for theirs, (ours, wanted) in pairs
            ]
        )


def _beside(reference: Slice, model: Slice, targets: Tensor) -> list[Tensor]:
    base, ours = reference.logits, model.logits
    p, q = reference.likelihood, model.likelihood
    # sum p ln(p / q), with what the rows of p and q have in common taken out of the sum: where the
    # logits are near, their differences are exact.
    products = p.weights * (base - ours)
    total = products.sum(-1, dtype=torch.float64)
    if not bool(torch.isfinite(total).all()):  # nothing comes of what has no probability
        products = torch.where(p.weights > 0, products, 0.0)
        total = products.sum(-1, dtype=torch.float64)
    logs = (q.top.double() + q.log_sum) - (p.top.double() + p.log_sum)
    kld = total / p.log_sum.exp() + logs
    same = base.argmax(-1) == ours.argmax(-1)
    return [q.nll(ours, targets), p.nll(base, targets), kld, same]


@dataclass(frozen=True)
class FileBase:
    """A logits file of llama.cpp as the reference."""

    file: LogitsFile

    @torch.inference_mode()
    def scores(self, number: int, slices: Iterator[Slice], targets: list[int]) -> Scores:
        """The scores of window `number`."""
        found, at = [], 0
        for ours, wanted in _with_targets(slices, targets):
            base = torch.from_numpy(self.file.log_probabilities(number, at, len(wanted)))
            at += len(wanted)
            found.append(_beside_logs(base.to(wanted.device), ours, wanted))
        return _collected(found)


def _beside_logs(base: Tensor, model: Slice, targets: Tensor) -> list[Tensor]:
    ours, q = model.logits, model.likelihood
    logs = q.top + q.log_sum.float()
    terms = torch.where(base > LEAST_LOG, base.exp() * (base - ours + logs[:, None]), 0.0)
    nll_base = -base.gather(-1, targets[:, None])[:, 0].double()
    same = base.argmax(-1) == ours.argmax(-1)
    return [q.nll(ours, targets), nll_base, terms.sum(-1, dtype=torch.float64), same]


def _collected(parts: list[list[Tensor]]) -> Scores:
    return Scores(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
