"""Scores of several windows at once, a pass ahead, beside those of each window's logits: float32
products in another order."""

import pytest
import torch
from support.checkpoints import DATA

from gpukit.errors import CheckpointError
from gpukit.evaluation import scoring
from gpukit.evaluation.ahead import Ahead
from gpukit.evaluation.scoring import Passes, scores
from gpukit.evaluation.windows import Windows, cut
from gpukit.generation.loading import LoadedModel, load_model


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(DATA / "tiny-shakespeare", "cpu")


@pytest.fixture
def windows(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Windows:
    monkeypatch.setattr(scoring, "PASS", 3 * 32)  # three windows of a pass
    monkeypatch.setattr(scoring, "SLICE", 20 * 2048)  # a slice ends within a window
    text = (DATA / "shakespeare.txt").read_text()
    return cut(text, model.tokenizer, 32, chunks=8)


# A journal knows some windows: they are never asked for.
@pytest.mark.parametrize("asked", [range(8), [0, 1, 4, 7], [2, 6], [7]])
def test_scores_are_those_of_the_logits(
    model: LoadedModel, windows: Windows, asked: list[int]
) -> None:
    ahead, passes = Ahead(model, windows, "tiny"), Passes(model, windows)
    for number in asked:
        wanted = scores(passes.logits(number), windows.targets(number), "tiny")
        assert ahead.scores(number).nll == pytest.approx(wanted.nll, abs=2e-4)
    assert ahead.seconds > 0


def test_logits_that_are_no_numbers_are_told(
    model: LoadedModel, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = type(model.decoder).states

    def damaged(decoder: object, sequences: torch.Tensor) -> torch.Tensor:
        found = states(model.decoder, sequences)
        found[1] = float("nan")
        return found

    monkeypatch.setattr(type(model.decoder), "states", damaged)
    ahead = Ahead(model, windows, "tiny")
    ahead.scores(0)
    with pytest.raises(CheckpointError, match="tiny: chunk 2: a logit is nan: the weights"):
        ahead.scores(1)
