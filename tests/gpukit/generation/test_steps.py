"""Generations by recorded steps: the tokens of the usual pass, and that where a step is wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import DATA

from gpukit.conversion.run import run_plan
from gpukit.generation.generate import GenerateOptions, stream
from gpukit.generation.loading import LoadedModel, load_model
from gpukit.generation.memory import Memory
from gpukit.generation.prompts import prompt_ids
from gpukit.generation.sampling import SamplingOptions
from gpukit.generation.steps import PATIENCE, Steps
from gpukit.models.recorded import RecordedStep
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GREEDY = SamplingOptions(temperature=0.0)


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns about the garbage in masked lanes."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A layer of a model whose device does not record: the CPU."""
    out = tmp_path_factory.mktemp("f32") / "f32.gguf"
    with open_source(DATA / "tiny-shakespeare") as source:
        run_plan(source, plan_quantize(source, "F32"), out)
    model = load_model(out, "cpu")
    decoder = replace(model.decoder, blocks=model.decoder.blocks[:1], ropes=model.decoder.ropes[:1])
    return replace(model, decoder=decoder)


@pytest.fixture
def stepping(usual: LoadedModel) -> LoadedModel:
    """The same, with steps."""
    model = replace(usual)
    model.__dict__["steps"] = Steps(model.decoder, anywhere=True)
    return model


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions that steps take tokens up at."""
    found: list[int] = []
    take = RecordedStep.take

    def noted(self: RecordedStep, token: int, position: int) -> None:
        found.append(position)
        take(self, token, position)

    monkeypatch.setattr(RecordedStep, "take", noted)
    return found


def said(model: LoadedModel, options: GenerateOptions, prompt: str = "First Citizen:") -> Any:
    return stream(model, prompt_ids(model, prompt), options).result.tokens


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingOptions(seed=3),
        SamplingOptions(seed=3, top_k=0, top_p=0.8),
        SamplingOptions(temperature=0.0, repeat_penalty=1.5),
    ],
)
def test_the_tokens_are_those_of_the_usual_pass(
    sampling: SamplingOptions, usual: LoadedModel, stepping: LoadedModel, taken: list[int]
) -> None:
    options = GenerateOptions(sampling, num_predict=PATIENCE + 4)
    wanted = said(usual, options)
    assert not taken
    assert said(stepping, options) == wanted
    # The first is taken up once more, to be compared.
    first = len(prompt_ids(usual, "First Citizen:")) + PATIENCE
    assert taken == [first, *range(first, first + 3)]


def test_a_context_that_is_full_ends_it(usual: LoadedModel, stepping: LoadedModel) -> None:
    ids = prompt_ids(usual, "First Citizen:")
    options = GenerateOptions(GREEDY, num_ctx=len(ids) + PATIENCE + 2)
    assert said(stepping, options) == said(usual, options)


def test_what_steps_have_left_is_remembered(usual: LoadedModel, stepping: LoadedModel) -> None:
    found = []
    for model in (usual, stepping):
        memory, ids = Memory(), prompt_ids(model, "First Citizen:")
        options = GenerateOptions(GREEDY, num_predict=PATIENCE + 2)
        first = stream(model, ids, options, memory=memory).result
        more = [*ids, *first.tokens, *prompt_ids(model, "\n\n")]
        # Another answer in between has its own cache.
        said(model, options, "Second")
        second = stream(model, more, options, memory=memory).result
        found.append((first.tokens, second.tokens, second.remembered_tokens))
    assert found[0] == found[1]
    assert found[0][2] == len(ids) + PATIENCE + 1


@pytest.mark.parametrize("fault", ["wrong", "raises", "no number"])
def test_a_step_that_is_wrong_is_told_and_not_used(
    fault: str,
    usual: LoadedModel,
    stepping: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*given: Any, **options: Any) -> None:
        if fault == "raises":
            raise RuntimeError("out of\nresources")
        if fault == "no number":
            given[9].fill_(float("nan"))

    monkeypatch.setattr("gpukit.models.stepping.attend_triton", broken)
    options = GenerateOptions(GREEDY, num_predict=PATIENCE + 3)
    wanted = said(usual, options)
    for _ in range(2):
        assert said(stepping, options) == wanted
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("recorded steps on cpu: ")
    assert ("out of resources" if fault == "raises" else "logits are off by") in message


def test_a_device_that_does_not_record_has_none(usual: LoadedModel, taken: list[int]) -> None:
    said(usual, GenerateOptions(GREEDY, num_predict=PATIENCE + 2))
    assert not taken


def test_nothing_keeps_a_cache_alive(stepping: LoadedModel, tmp_path: Path) -> None:
    steps, cache = stepping.steps, stepping.decoder.cache(16)
    stepping.decoder.forward([1, 2], cache)
    assert steps.take(3, cache) is None
    assert len(steps._single) == 1
    del cache
    assert len(steps._single) == 0
