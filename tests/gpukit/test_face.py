"""`import gpukit`: its names, what it loads, and every verb of it on a small model."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import DATA

import gpukit
from gpukit.generation.generate import GenerateOptions
from gpukit.generation.model import Parameters
from gpukit.generation.sampling import SamplingOptions

ROOT = Path(__file__).resolve().parents[2]
TINY = DATA / "tiny-shakespeare"
PROMPT = "First Citizen:"
GREEDY = "\nHe has a power to be authority\nWhich he hath made to be aged in re"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("face") / "tiny.gguf"
    gpukit.convert(TINY, out, "F16", device="cpu")
    return out


@pytest.fixture(scope="module")
def model(file: Path) -> gpukit.Model:
    return gpukit.load(file, "cpu")


def test_its_names_are_those_that_types_are_checked_with() -> None:
    text = (ROOT / "gpukit/__init__.py").read_text()
    checked = set(re.findall(r"\b(\w+) as \1\b", text))
    assert checked == set(gpukit.__all__) - {"__version__"} == set(dir(gpukit)) & checked
    for name in gpukit.__all__:
        assert getattr(gpukit, name) is not None
    kinds = {name for name in gpukit.errors.__all__ if name[0].isupper()}
    assert kinds <= set(gpukit.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'mend'"):
        gpukit.mend  # noqa: B018


def test_every_function_of_it_says_what_comes_out() -> None:
    for name in gpukit.__all__:
        found = getattr(gpukit, name)
        if inspect.isfunction(found) or (inspect.isclass(found) and found.__module__ != "typing"):
            assert len((found.__doc__ or "").split()) > 3, name
    for name in ("convert", "quantize", "plan", "load", "inspect"):
        assert f"gpukit.{name}(" in (getattr(gpukit, name).__doc__ or ""), name


@pytest.mark.parametrize(
    "statement",
    [
        "pass",
        "dir(gpukit)",
        "gpukit.Store('nowhere').list(), gpukit.Modelfile(source='.'), gpukit.GpukitError('x')",
        "gpukit.inspect(sys.argv[1])",
    ],
)
def test_it_loads_no_torch_before_that_is_needed(statement: str, file: Path) -> None:
    code = f"import sys, gpukit; {statement}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)


def test_convert_and_quantize_give_what_they_wrote(file: Path, tmp_path: Path) -> None:
    heard: list[object] = []
    out = tmp_path / "q8.gguf"
    result = gpukit.quantize(file, str(out), "q8_0", device="cpu", report=heard.append)
    assert result.path == out
    assert result.size == out.stat().st_size
    assert {total.type for total in result.totals} == {"Q8_0", "F32"}
    assert any(isinstance(event, gpukit.Step) for event in heard)
    assert json.loads(json.dumps(result.as_json()))["size"] == result.size
    options = gpukit.Options(overrides=gpukit.make_overrides(["ffn_down=F16"]))
    mixed = gpukit.quantize(file, tmp_path / "mixed.gguf", "Q8_0", options=options, device="cpu")
    assert {total.type for total in mixed.totals} == {"Q8_0", "F16", "F32"}


def test_a_plan_writes_what_it_shows(tmp_path: Path) -> None:
    with gpukit.plan(TINY, "Q4_0") as plan:
        assert not list(tmp_path.iterdir())
        assert plan.file_type is not None
        assert (plan.file_type.name, plan.parts) == ("Q4_0", (len(plan.outputs),))
        result = plan.write(tmp_path / "tiny.gguf", device="cpu")
    assert result.size == plan.size == (tmp_path / "tiny.gguf").stat().st_size
    assert [(t.type, t.nbytes) for t in result.totals] == [
        (t.type, t.nbytes) for t in plan.totals()
    ]
    found = gpukit.inspect(tmp_path / "tiny.gguf")
    assert [t.name for t in found.tensors] == [o.spec.name for o in plan.outputs]
    assert found.file_type == "Q4_0"


def test_what_cannot_be_asked_for_is_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    for out, kind, options, told in (
        ("x.gguf", "Q9", {}, "Q9"),
        ("none/x.gguf", "Q8_0", {}, "there is no folder"),
        ("x.gguf", "Q8_0", {"device": "gpu"}, "unknown device 'gpu'"),
        ("x.gguf", "Q8_0", {"pre": "mine"}, "mine"),
    ):
        with pytest.raises(gpukit.ArgumentError, match=told):
            gpukit.convert("nowhere", tmp_path / out, kind, **options)
    with pytest.raises(gpukit.NotFoundError, match="nowhere: no such file"):
        gpukit.convert(str(tmp_path / "nowhere"), tmp_path / "x.gguf")
    with pytest.raises(gpukit.ArgumentError, match="unknown device"):
        gpukit.load("nowhere", "gpu")


def test_a_model_speaks_at_once_or_piece_by_piece(model: gpukit.Model) -> None:
    answer = model.generate(PROMPT, temperature=0, num_predict=24)
    assert (answer.text, answer.done_reason, len(answer.tokens)) == (GREEDY, "length", 24)
    pieces = model.stream(PROMPT, temperature=0, num_predict=24, stop="hath")
    assert isinstance(pieces, Iterator)
    assert "".join(pieces) == GREEDY[: GREEDY.index("hath")] == pieces.result.text
    seeded = [model.generate(PROMPT, seed=7, num_predict=12).text for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_its_logits_are_those_that_it_picks_from(model: gpukit.Model) -> None:
    answer = model.generate(PROMPT, temperature=0, num_predict=12)
    ids = model.tokenizer.encode(PROMPT)
    logits = model.logits([*ids, *answer.tokens])
    assert logits.dtype is torch.float32
    assert logits.shape == (len(ids) + 12, 2048)
    assert tuple(logits[len(ids) - 1 : -1].argmax(-1).tolist()) == answer.tokens
    for wrong, told in (([2048], "token 2048"), ([-1], "token -1"), ([], "no tokens")):
        with pytest.raises(gpukit.ArgumentError, match=told):
            model.logits(wrong)
    with pytest.raises(gpukit.ArgumentError, match="1025 tokens do not fit into a context of 1024"):
        model.logits([1] * 1025)


def test_parameters_have_ollamas_names_and_no_others(model: gpukit.Model) -> None:
    fields = {*SamplingOptions.__annotations__, *GenerateOptions.__annotations__}
    # `stop_ids` is for programs: a Modelfile names texts, not numbers of tokens.
    fields -= {"sampling", "stop_ids"}
    assert set(Parameters.__annotations__) == fields
    with pytest.raises(gpukit.ArgumentError, match="unknown parameter 'temprature'; known: temp"):
        model.stream(PROMPT, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(gpukit.ArgumentError, match="temperature is -1"):
        model.stream(PROMPT, temperature=-1)


TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}|{% endfor %}"


def test_messages_go_through_the_template(
    model: gpukit.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    with pytest.raises(gpukit.ArgumentError, match="no chat template; give a text"):
        model.stream(talk)
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATE)
    own = gpukit.Model(
        model.loaded, {"num_predict": 0}, "Rhyme.", ({"role": "user", "content": "A"},)
    )
    system = {"role": "system", "content": "Be"}
    for prompt, given, text in (
        ("Hi", None, "[system] Rhyme.|[user] A|[user] Hi|"),
        (talk, "", "[user] A|[user] Hi|"),
        ([system, *talk], None, "[user] A|[system] Be|[user] Hi|"),
    ):
        wanted = model.tokenizer.encode(text, parse_special=True)
        assert own.generate(prompt, system=given).prompt_tokens == len(wanted)
    with pytest.raises(gpukit.ArgumentError, match="no messages"):
        model.stream([])
    with pytest.raises(gpukit.ArgumentError, match=r"message 0 is \{'role': 'user'\}"):
        model.stream([{"role": "user"}])


def test_a_store_has_its_verbs(file: Path, tmp_path: Path) -> None:
    store = gpukit.Store(tmp_path / "models")
    described = gpukit.Modelfile(
        source=str(file), parameters={"temperature": 0, "num_predict": 24, "stop": ["hath"]}
    )
    made = store.create("tiny", described, device="cpu")
    (tmp_path / "Modelfile").write_text("FROM tiny\nSYSTEM Speak.\n")
    store.create("other", tmp_path / "Modelfile")
    store.copy("tiny", "tiny:second")
    assert {model.name.display for model in store.list("tiny")} == {"tiny:latest", "tiny:second"}
    assert store.show("other").system == "Speak."
    assert made.digest == store.list("tiny:s")[0].digest
    store.remove("tiny:second")
    assert len(store.list()) == 2
    with pytest.raises(gpukit.NotFoundError, match="tiny:second"):
        store.resolve("tiny:second")


def test_a_stored_model_brings_its_parameters(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path))
    parameters = {"temperature": 0, "num_predict": 24, "stop": ["hath"]}
    gpukit.Store().create("tiny", gpukit.Modelfile(source=str(file), parameters=parameters))
    stored = gpukit.load("tiny", "cpu")
    assert stored.generate(PROMPT).text == GREEDY[: GREEDY.index("hath")]
    assert stored.generate(PROMPT, stop=[]).text == GREEDY
