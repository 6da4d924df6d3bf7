"""Batches whose sources llama.cpp's converter reads."""

import shutil
from pathlib import Path

import pytest
from support.converter_folders import TREE, toy

import gpukit
from gpukit import ArgumentError

PLAN = """
sources: [toy]
types: [Q8_0, Q4_0, Q4_K_M]
output: out/{source}-{type}.gguf
options: {device: cpu, converter: llama.cpp}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    toy(tmp_path / "toy")
    shutil.copytree(TREE, tmp_path / "llama.cpp")
    return tmp_path


def _plan(place: Path, text: str = PLAN) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def _states(result: gpukit.BatchResult) -> list[str]:
    return [str(row.state) for row in result.rows]


@pytest.mark.thorough
def test_bytes_are_those_of_single_commands(place: Path) -> None:
    plan = _plan(place)
    foreseen = gpukit.plan_batch(plan)
    assert foreseen.warnings == (
        f"toy: planned by llama.cpp's converter in {place / 'llama.cpp'}; its code is run",
    )
    made = gpukit.batch(plan)
    assert _states(made) == ["done"] * 3
    for before, row in zip(foreseen.rows, made.rows, strict=True):
        alone = place / "alone.gguf"
        gpukit.convert(place / "toy", alone, row.type, converter=TREE, device="cpu")
        assert Path(row.output).read_bytes() == alone.read_bytes(), row.type
        assert before.size == alone.stat().st_size
    assert not any(row.made for row in gpukit.batch(plan).rows)


def test_another_version_and_other_arguments_are_another_result(place: Path) -> None:
    plan = _plan(place, PLAN.replace("Q8_0, Q4_0, Q4_K_M", "Q4_0"))
    gpukit.batch(plan)
    # The same version elsewhere is the same.
    shutil.copytree(place / "llama.cpp", place / "clone")
    shutil.rmtree(place / "llama.cpp")
    (place / "clone").rename(place / "llama.cpp")
    assert _states(gpukit.plan_batch(plan)) == ["done"]
    arguments = PLAN.replace("llama.cpp}", "{path: llama.cpp, arguments: [--do, nothing]}}")
    changed = gpukit.plan_batch(_plan(place, arguments.replace("Q8_0, Q4_0, Q4_K_M", "Q4_0")))
    assert changed.rows[0].why == "converter has changed since it was made"
    (place / "llama.cpp" / "conversion").mkdir()
    (place / "llama.cpp" / "conversion" / "toy.py").write_text("# newer\n")
    changed = gpukit.plan_batch(_plan(place, PLAN.replace("Q8_0, Q4_0, Q4_K_M", "Q4_0")))
    assert changed.rows[0].why == "converter has changed since it was made"
    without = gpukit.plan_batch(
        _plan(place, PLAN.replace(", converter: llama.cpp", "").replace("Q8_0, Q4_0, ", ""))
    )
    assert "unknown architecture 'ToyModel'" in without.rows[0].why


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("llama.cpp}", "nothing}", r"plan.yaml:5: --converter .*nothing: no checkout of llama.cpp"),
        ("llama.cpp}", "{path: llama.cpp, arguments: --outtype=f32}}",
         r"plan.yaml:5: --converter-arg=--outtype=f32: makes no sense here"),
        ("llama.cpp}", "{dir: llama.cpp}}", "plan.yaml:5: unknown key 'dir'; known: path,"),
        ("llama.cpp}", "llama.cpp, pre: llama-bpe}",
         "plan.yaml:5: toy with none as Q8_0: --pre and --converter"),
        ("llama.cpp}", "llama.cpp}\noverrides:\n- match: {type: Q4_0}\n  options: {converter: x}",
         r"plan.yaml:8: --converter .*x: no checkout of llama.cpp"),
        ("types", "adapters: [llama.cpp]\ntypes",
         r"plan.yaml:6: toy with .* as Q8_0: --converter takes no adapter: merge it into a folder"),
        ("options", "calibrate: plan.yaml\noptions",
         "plan.yaml:6: toy with none as Q8_0: --calibrate and --converter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_line_of_the_plan(place: Path, old: str, new: str, told: str) -> None:
    (place / "llama.cpp" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArgumentError, match=told):
        gpukit.plan_batch(_plan(place, PLAN.replace(old, new)))
    assert not (place / "out").exists()


def test_what_cannot_be_run_is_not_measured(place: Path) -> None:
    (place / "text").write_text("words " * 99)
    measured = "evaluate: {text: text}\n"
    refused = gpukit.plan_batch(_plan(place, PLAN + measured)).refused
    assert len(refused) == 3
    assert "gpukit cannot run architecture 'toy', so this cannot be measured; leave" in refused[0]
    spared = "overrides: [{match: {source: toy}, evaluate: false}]\n"
    assert gpukit.plan_batch(_plan(place, PLAN + measured + spared)).refused == ()


def test_into_the_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(place / "models"))
    text = (
        "sources: [toy]\ntypes: [Q4_0]\nstore: true\noverrides:\n"
        "  - {match: {source: toy}, options: {device: cpu, converter: {path: llama.cpp}}}\n"
    )
    assert _states(gpukit.batch(_plan(place, text))) == ["done"]
    assert gpukit.Store().resolve("toy:Q4_0").gguf.stat().st_size > 0
