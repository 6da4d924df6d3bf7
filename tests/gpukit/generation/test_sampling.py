"""Sampling on small distributions whose outcome is known, and properties on random ones."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from gpukit.errors import ArgumentError, CheckpointError
from gpukit.generation.sampling import (
    Sampler,
    SamplingOptions,
    draw,
    min_p,
    penalise,
    probabilities,
    top_k,
    top_p,
    typical_p,
)

PLAIN = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, seed=1)


def _logs(*shares: float) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64).log().float()


def _ids(logits: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(logits))


def _random(seed: int, n: int = 500) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 3


def test_top_k_keeps_the_largest_in_order() -> None:
    logits, ids = top_k(torch.tensor([1.0, 4.0, 2.0, 3.0]), 3)
    assert ids.tolist() == [1, 3, 2]
    assert logits.tolist() == [4.0, 3.0, 2.0]


@pytest.mark.parametrize("k", [0, -1, 4, 5])
def test_top_k_of_all_only_sorts(k: int) -> None:
    assert top_k(torch.tensor([1.0, 4.0, 2.0, 3.0]), k)[1].tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("k", [1, 2, 3, 100, 999, 0])
def test_top_k_takes_the_first_of_equals(k: int) -> None:
    logits = torch.zeros(1000)
    logits[500] = 1.0
    wanted = [500, *range(500), *range(501, 1000)]
    assert top_k(logits, k)[1].tolist() == wanted[: k or None]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]
)
def test_top_p_on_known_shares(p: float, kept: int) -> None:
    logits = _logs(0.5, 0.3, 0.15, 0.05)
    assert top_p(logits, _ids(logits), p)[1].tolist() == list(range(kept))


@pytest.mark.parametrize("seed", range(20))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed: int) -> None:
    logits, ids = top_k(_random(seed), 0)
    p = (seed + 0.5) / 20
    kept = len(top_p(logits, ids, p)[0])
    shares = probabilities(logits)
    assert shares[:kept].sum() >= p
    assert shares[: kept - 1].sum() < p


def test_top_p_with_nothing_behind_the_first() -> None:
    logits = torch.tensor([0.0, -math.inf, -math.inf])
    assert len(top_p(logits, _ids(logits), 0.999)[0]) == 1


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, 4), (0.09, 4), (0.11, 3), (0.29, 3), (0.31, 2), (0.61, 1), (1.0, 1)]
)
def test_min_p_is_a_share_of_the_largest(p: float, kept: int) -> None:
    logits = _logs(0.5, 0.3, 0.15, 0.05)
    assert min_p(logits, _ids(logits), p)[1].tolist() == list(range(kept))


def test_min_p_of_one_keeps_all_that_are_largest() -> None:
    logits = torch.tensor([2.0, 2.0, 1.0])
    assert len(min_p(logits, _ids(logits), 1.0)[0]) == 2


def test_typical_p_leaves_out_what_is_too_likely() -> None:
    # Surprise: 0.51 and 3.22 nats (ten times), the mean is 1.60: the likely one is nearer.
    logits = _logs(0.6, *[0.04] * 10)
    assert typical_p(logits, _ids(logits), 0.3)[1].tolist() == [0]
    # Surprise: 0.36, 1.61 and 4.61 nats, the mean is 1.03: the second is nearest, the first next.
    logits = _logs(0.7, 0.2, *[0.01] * 10)
    assert typical_p(logits, _ids(logits), 0.1)[1].tolist() == [1]
    assert typical_p(logits, _ids(logits), 0.25)[1].tolist() == [0, 1]
    # The mean is 1.05 nats: 0.92 and 0.92 are nearer than 1.61.
    logits = _logs(0.4, 0.4, 0.2)
    assert typical_p(logits, _ids(logits), 0.5)[1].tolist() == [0, 1]
    assert typical_p(logits, _ids(logits), 1.0)[1].tolist() == [0, 1, 2]


def test_penalties_on_known_logits() -> None:
    options = replace(
        PLAIN, repeat_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, repeat_last_n=4
    )
    logits = torch.tensor([4.0, -4.0, 0.0, 1.0])
    # Token 3 is out of reach; 0 is there twice, 1 once, 2 once.
    found = penalise(logits, [3, 0, 1, 0, 2], options)
    assert found.tolist() == [2 - 0.5 - 0.5, -8 - 0.25 - 0.5, -0.75, 1.0]
    assert logits.tolist() == [4.0, -4.0, 0.0, 1.0]
    everything = penalise(logits, [3, 0, 1, 0, 2], replace(options, repeat_last_n=-1))
    assert everything[3] == 0.5 - 0.25 - 0.5
    assert penalise(logits, [3, 0], replace(options, repeat_last_n=0)) is logits
    assert penalise(logits, [], options) is logits


def test_the_repeat_penalty_moves_the_choice() -> None:
    logits = torch.tensor([3.0, 2.9])
    greedy = replace(PLAIN, temperature=0.0)
    assert Sampler(greedy).pick(logits, [0]) == 0
    assert Sampler(replace(greedy, repeat_penalty=1.1)).pick(logits, [0]) == 1


def test_draws_follow_the_shares() -> None:
    random = torch.Generator().manual_seed(3)
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    n = 20_000
    found = Counter(draw(shares, random) for _ in range(n))
    assert found.keys() == {0, 2, 3}
    for index, share in enumerate(shares.tolist()):
        # Six standard deviations of the binomial distribution.
        assert abs(found[index] - n * share) <= 6 * math.sqrt(n * share * (1 - share))


def test_temperature_sharpens() -> None:
    logits = _logs(0.8, 0.2)
    assert probabilities(logits, 0.5).tolist() == pytest.approx([0.64 / 0.68, 0.04 / 0.68])
    assert probabilities(logits, 1e-320).tolist() == [1.0, 0.0]
    assert probabilities(logits, 1e300).tolist() == pytest.approx([0.5, 0.5])


def test_a_seed_says_it_all() -> None:
    def tokens(seed: int) -> list[int]:
        sampler = Sampler(replace(SamplingOptions(), seed=seed))
        return [sampler.pick(_random(i), []) for i in range(30)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(-1) != tokens(-1)
    tokens(2**63 - 1)


@pytest.mark.parametrize("seed", range(10))
def test_a_draw_is_one_number_from_the_generator(seed: int) -> None:
    ends = [0.5, 0.8, 0.95, 1.0]
    number = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = next(index for index, end in enumerate(ends) if number < end)
    sampler = Sampler(replace(PLAIN, seed=seed))
    assert sampler.pick(_logs(0.5, 0.3, 0.15, 0.05), []) == wanted


def test_a_temperature_of_zero_takes_the_first_of_the_likeliest() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.0))
    assert sampler.pick(torch.tensor([0.0, 2.0, 1.0, 2.0]), []) == 1


def test_logits_of_minus_infinity_are_never_picked() -> None:
    logits = torch.full((50,), -math.inf)
    logits[[3, 7]] = 0.0
    sampler = Sampler(replace(PLAIN, temperature=5.0))
    assert {sampler.pick(logits, [3]) for _ in range(100)} == {3, 7}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers_are_told(bad: float, temperature: float) -> None:
    logits = torch.zeros(100)
    logits[17] = bad
    sampler = Sampler(replace(PLAIN, temperature=temperature), "tiny", adapters=["ad:2"])
    with pytest.raises(
        CheckpointError, match=f"^tiny: a logit is {bad} with the adapter ad:2: use a smaller"
    ):
        sampler.pick(logits, [])
    with pytest.raises(CheckpointError, match=r"^the model: a logit is -inf: the weights are dam"):
        Sampler(PLAIN).pick(torch.full((4,), -math.inf), [])


def test_the_filters_work_in_a_row() -> None:
    # top_k 3 leaves 0.5, 0.3, 0.1 of 0.9; top_p 0.85 of those takes two; min_p 0.65 leaves one.
    logits = _logs(0.1, 0.5, 0.3, 0.05, 0.05)
    options = replace(PLAIN, top_k=3, top_p=0.85)
    assert {Sampler(replace(options, seed=s)).pick(logits, []) for s in range(50)} == {1, 2}
    options = replace(options, min_p=0.65)
    assert {Sampler(replace(options, seed=s)).pick(logits, []) for s in range(50)} == {1}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.inf}, "temperature is inf; a finite number from 0 on"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 1.1}, "top_p is 1.1; it goes from 0 to 1"),
        ({"min_p": -1}, "min_p is -1"),
        ({"typical_p": math.nan}, "typical_p is nan"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0; a finite number over 0"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        replace(PLAIN, **wrong)  # type: ignore[arg-type]
