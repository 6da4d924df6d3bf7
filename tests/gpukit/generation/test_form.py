"""Answers of a form: whatever the model would say, what comes out is of it."""

import json
import sys
from typing import Any

import pytest
from support.checkpoints import DATA

from gpukit.errors import ArgumentError
from gpukit.generation.generate import options_from
from gpukit.generation.loading import load_model
from gpukit.generation.model import Model

SCHEMA: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["é🙂", "b"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Model:
    pytest.importorskip("llguidance")
    return Model(load_model(DATA / "tiny-shakespeare", "cpu"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(4))
def test_an_answer_fits_its_schema(model: Model, seed: int) -> None:
    # The model has never seen JSON, so nothing but the form leads it there.
    answer = model.generate("First Citizen:", format=SCHEMA, seed=seed, num_predict=200)
    assert answer.done_reason == "stop"
    found = json.loads(answer.text)
    assert list(found) == ["name", "age", "kind"]
    assert found["kind"] in ("é🙂", "b")
    assert len(found["name"]) <= 12
    assert 0 <= found["age"] <= 99


def test_the_likeliest_token_of_those_that_can_come(model: Model) -> None:
    answer = model.generate("First Citizen:", format=SCHEMA, temperature=0, num_predict=200)
    again = model.generate("First Citizen:", format=dict(SCHEMA), temperature=0, num_predict=200)
    assert json.loads(answer.text) == json.loads(again.text)
    plain = model.generate("First Citizen:", temperature=0, num_predict=4).text
    assert plain == "\nHe has"  # it keeps nothing of the form


def test_json_is_an_object(model: Model) -> None:
    answer = model.generate("First Citizen:", format="json", temperature=0, num_predict=60)
    assert answer.text.lstrip().startswith("{")
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize(
    "wrong", ["xml", {"type": "nothing"}, {"$ref": "#/nowhere"}, {"a": {1, 2}}]
)
def test_what_is_no_form_is_told_in_one_line(wrong: Any) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(ArgumentError, match=r"^format") as caught:
        options_from({}, {"format": wrong})
    assert "\n" not in str(caught.value)


def test_without_llguidance_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ArgumentError, match=r"pip install 'gpukit\[format\]'"):
        options_from({}, {"format": "json"})
