"""The statistics beside the same in numpy float64, written down from their definitions."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpukit.errors import CheckpointError
from gpukit.evaluation import divergence as divergences, scoring
from gpukit.evaluation.divergence import Divergence, Slice
from gpukit.evaluation.perplexity import Sums, mean, perplexity
from gpukit.evaluation.scoring import Likelihood, Scores, joined, scores

F64 = NDArray[np.float64]
ROWS, VOCAB = 137, 301


def _logits(seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def _log_p(logits: Tensor) -> F64:
    x: F64 = logits.double().numpy()
    top = x.max(-1, keepdims=True)
    found: F64 = x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))
    return found


def _beside(base: Tensor, ours: Tensor, targets: list[int]) -> Scores:
    slices = Slice(base, "base"), Slice(ours, "ours")
    parts = divergences._beside(*slices, torch.tensor(targets))
    return Scores(*(part.numpy() for part in parts))


@pytest.fixture(scope="module")
def targets() -> list[int]:
    return np.random.default_rng(3).integers(0, VOCAB, ROWS).tolist()


@pytest.fixture(scope="module")
def found(targets: list[int]) -> Scores:
    base = _logits(1)
    return _beside(base, base + 0.3 * _logits(2), targets)


def test_nll_is_minus_ln_p(targets: list[int]) -> None:
    logits = _logits(1)
    expected = -_log_p(logits)[np.arange(ROWS), targets]
    parts: Iterator[Tensor] = iter(logits.split(50))
    # float32 exponentials below 1, float64 sums: each nll is off by 2^-23 of logits up to 12.
    np.testing.assert_allclose(scores(parts, targets, "x").nll, expected, atol=3e-6, rtol=0)


def test_large_logits_overflow_nothing(targets: list[int]) -> None:
    logits = _logits(1) + 1e4
    expected = -_log_p(logits)[np.arange(ROWS), targets]
    got = scores(iter([logits]), targets, "x").nll
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=1e-6)


def test_divergence_of_each_token(found: Scores, targets: list[int]) -> None:
    base = _logits(1)
    p, q = _log_p(base), _log_p(base + 0.3 * _logits(2))
    expected = (np.exp(p) * (p - q)).sum(-1)
    assert found.kld is not None
    np.testing.assert_allclose(found.kld, expected, atol=1e-6, rtol=0)
    assert found.same_top is not None
    assert found.same_top.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()
    assert 0.2 < found.same_top.mean() < 1


def test_a_model_beside_itself_does_not_diverge(targets: list[int]) -> None:
    logits = _logits(4)
    same = _beside(logits, logits.clone(), targets)
    assert same.kld is not None
    assert same.same_top is not None
    assert same.kld.tolist() == [0.0] * ROWS
    assert same.same_top.all()
    # What all logits have in common does not count.
    shifted = _beside(logits, logits + 2, targets)
    assert shifted.kld is not None
    assert np.abs(shifted.kld).max() < 1e-6


def test_what_has_no_probability_adds_nothing(targets: list[int]) -> None:
    base, ours = _logits(5), _logits(6)
    base[:, 7] = ours[:, 7] = -math.inf
    keep = [column for column in range(VOCAB) if column != 7]
    safe = [0 if target == 7 else target for target in targets]
    p, q = _log_p(base[:, keep]), _log_p(ours[:, keep])
    got = _beside(base, ours, safe).kld
    assert got is not None
    np.testing.assert_allclose(got, (np.exp(p) * (p - q)).sum(-1), atol=1e-5, rtol=1e-6)


def test_all_the_numbers_beside_numpy(found: Scores) -> None:
    assert found.nll_base is not None
    assert found.kld is not None
    assert found.same_top is not None
    a, b, n = found.nll, found.nll_base, ROWS
    got = Divergence.of(found).as_json()
    error_a, error_b = a.std(ddof=1) / n**0.5, b.std(ddof=1) / n**0.5
    covariance = np.cov(a, b)[0, 1] / n
    ppl, base = np.exp(a.mean()), np.exp(b.mean())
    dp = np.exp(-a) - np.exp(-b)
    ratio_error = np.sqrt(error_a**2 + error_b**2 - 2 * covariance)
    difference_error = np.sqrt(
        (ppl * error_a) ** 2 + (base * error_b) ** 2 - 2 * ppl * base * covariance
    )
    expected = {
        "perplexity_base": base,
        "perplexity_base_error": base * error_b,
        "correlation": np.corrcoef(a, b)[0, 1],
        "log_ratio": np.log(ppl / base),
        "log_ratio_error": ratio_error,
        "ratio": ppl / base,
        "ratio_error": ppl / base * ratio_error,
        "difference": ppl - base,
        "difference_error": difference_error,
        "kld": found.kld.mean(),
        "kld_error": found.kld.std(ddof=1) / n**0.5,
        "kld_max": found.kld.max(),
        "kld_min": found.kld.min(),
        "dp": dp.mean(),
        "dp_error": dp.std(ddof=1) / n**0.5,
        "dp_rms": np.sqrt((dp**2).mean()),
        "dp_rms_error": (dp**2).std(ddof=1) / n**0.5 / 2 / np.sqrt((dp**2).mean()),
        "same_top": found.same_top.mean(),
        "same_top_error": np.sqrt(found.same_top.mean() * (1 - found.same_top.mean()) / (n - 1)),
    }
    for name, values in (("kld", found.kld), ("dp", dp)):
        ordered = np.sort(values)
        for end, share in divergences.SHARES.items():
            at = share * (n - 1)
            low = int(at)
            high = ordered[min(low + 1, n - 1)]
            expected[f"{name}_{end}"] = ordered[low] + (at - low) * (high - ordered[low])
        expected[f"{name}_max"], expected[f"{name}_min"] = ordered[-1], ordered[0]
    assert got.keys() == expected.keys()
    for key, value in got.items():
        assert value == pytest.approx(float(expected[key]), rel=1e-9, abs=1e-12), key


def test_perplexity_and_its_error() -> None:
    nll = np.random.default_rng(1).exponential(3, 1000)
    got = perplexity(nll)
    assert got.value == pytest.approx(np.exp(nll.mean()))
    # As llama-perplexity: sqrt((mean of squares - square of mean) / (count - 1)).
    error = got.value * np.sqrt(((nll**2).mean() - nll.mean() ** 2) / 999)
    assert got.error == pytest.approx(error)
    assert mean(nll[:1]).error == 0
    assert perplexity(np.array([1e3])).value == math.inf


def test_sums_as_they_come_are_those_of_all() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(3, 1, 500), random.normal(2, 1, 500)
    sums = Sums()
    for start in range(0, 500, 77):
        sums.add(a[start : start + 77], b[start : start + 77])
    for got, wanted in (
        (sums.mean_a(), mean(a)), (sums.mean_b(), mean(b)), (sums.difference(), mean(a - b)),
        (sums.perplexity(), perplexity(a)),
    ):  # fmt: skip
        assert got.value == pytest.approx(wanted.value)
        assert got.error == pytest.approx(wanted.error)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    logits = _logits(1)
    logits[5] = bad if bad < 0 else logits[5]
    logits[5, 9] = bad
    with pytest.raises(CheckpointError, match=f"tiny: chunk 3: a logit is {bad}: the weights"):
        Likelihood.of(logits, "tiny: chunk 3")


def test_a_token_without_probability_is_infinitely_far(targets: list[int]) -> None:
    base, ours = _logits(1), _logits(2)
    ours[4, targets[4]] = -math.inf
    found = Divergence.of(_beside(base, ours, targets))
    assert found.kld.max == found.kld.mean.value == found.ratio.value == math.inf
    assert found.kld.at["95"] < math.inf


def test_scores_are_joined_in_order(found: Scores) -> None:
    both = joined([found, found])
    assert len(both) == 2 * ROWS
    assert both.kld is not None
    assert found.kld is not None
    assert both.kld.tolist() == [*found.kld, *found.kld]
    assert joined([Scores(found.nll)]).kld is None


@pytest.mark.parametrize(("vocab", "rows"), [(1 << 20, 16), (1 << 30, 1)])
def test_rows_in_memory_shrink_with_the_vocabulary(vocab: int, rows: int) -> None:
    config = SimpleNamespace(vocab_size=vocab)
    decoder: Any = SimpleNamespace(device=torch.device("cpu"), config=config)
    assert scoring.slice_rows(decoder) == rows
