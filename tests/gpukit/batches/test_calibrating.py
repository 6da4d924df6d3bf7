"""Importance that a batch collects: once, kept, with the bytes of `quantize --calibrate`."""

import shutil
from pathlib import Path

import pytest
from support.checkpoints import DATA
from support.loras import lora

import gpukit
from gpukit.batches.result import Told
from gpukit.errors import ArgumentError
from gpukit.evaluation import collecting
from gpukit.formats.imatrix import read_collection

PLAN = """
sources: [tiny]
adapters: [none, lora]
types: [F16, Q4_0, Q4_1]
output: out/{adapter}-{type}.gguf
options: {device: cpu}
calibrate: {text: text.txt}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "tiny-shakespeare", tmp_path / "tiny")
    text = (DATA / "shakespeare.txt").read_text()
    (tmp_path / "text.txt").write_text(text[:3200])
    lora(tmp_path / "tiny", tmp_path / "lora", targets=("q_proj",))
    return tmp_path


def _plan(place: Path, text: str = PLAN) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def test_the_bytes_are_those_of_quantize(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = collecting.load_model

    def counted(path: Path, *words: object, **more: object) -> object:
        loaded.append(path)
        return load(path, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(collecting, "load_model", counted)
    plan = _plan(place)
    foreseen = gpukit.plan_batch(plan)
    assert (foreseen.refused, loaded) == ((), [])
    assert not (place / "plan.yaml.gpukit").exists()
    made = gpukit.batch(plan)
    # Once alone, once with the adapter, for four results.
    assert loaded == [place / "tiny"] * 2
    for before, row in zip(foreseen.rows, made.rows, strict=True):
        adapters = () if row.adapter == "none" else (place / "lora",)
        text = None if row.type == "F16" else place / "text.txt"
        with gpukit.plan(
            place / "tiny", row.type, adapters=adapters, calibrate=text, device="cpu"
        ) as single:
            single.write(place / "single.gguf", device="cpu")
        assert Path(row.output).read_bytes() == (place / "single.gguf").read_bytes(), row
        assert before.size == row.size
    loaded.clear()
    (place / "out" / "none-Q4_0.gguf").unlink()
    assert [row.made for row in gpukit.batch(plan).rows].count(True) == 1
    assert not loaded
    states = [str(r.state) for r in gpukit.batch_status(_plan(place, PLAN + "#")).rows]
    assert states == ["done"] * 6
    (place / "text.txt").write_text("Another text. " * 600)
    found = gpukit.batch_status(plan).rows
    assert [str(row.state) for row in found[:2]] == ["done", "changed"]
    assert found[1].why == "calibrate has changed since it was made"


def test_a_killed_collection_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PLAN.replace("[none, lora]", "[none]").replace("F16, Q4_0, ", "")
    plan = _plan(place, text.replace("text.txt}", "text.txt, context: 64, chunks: 12}"))

    def until_the_eleventh(told: Told) -> None:
        event = told.event
        if isinstance(event, gpukit.Step) and event.text == collecting.TITLE:
            if event.done < 11 * 64:
                return
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpukit.batch(plan, watch=until_the_eleventh)
    (kept,) = (place / "plan.yaml.gpukit" / "imatrix").iterdir()
    assert read_collection(kept).chunks == 10
    heard: list[Told] = []
    (row,) = gpukit.batch(plan, watch=heard.append).rows
    told = [t.event.text for t in heard if isinstance(t.event, gpukit.Status)]
    assert f"going on behind chunk 10 of 12, from {kept}" in told
    assert read_collection(kept).chunks == 12
    data = Path(row.output).read_bytes()
    shutil.rmtree(place / "out")
    shutil.rmtree(kept.parent)
    gpukit.batch(plan)
    assert Path(row.output).read_bytes() == data


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("text.txt", "none.txt", r"plan.yaml:7: .*none.txt: no such file"),
        ("text: text.txt", "context: 64", r"plan.yaml:7: 'text' is missing in calibrate"),
        ("text.txt", "text.txt, context: 1", r"plan.yaml:7: context is 1; windows have"),
        ("cpu}", "cpu, merge_base: nf4}", r"plan.yaml:7: what is heard is with adapters beside"),
    ],
)
def test_what_is_refused(place: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        gpukit.plan_batch(_plan(place, PLAN.replace(old, new)))


def test_some_are_made_without(place: Path) -> None:
    text = PLAN.replace("{text: text.txt}", "text.txt").replace("[none, lora]", "[none]")
    text += "overrides:\n- match: {type: Q4_0}\n  calibrate: false\n"
    gpukit.batch(_plan(place, text))
    gpukit.convert(place / "tiny", place / "single.gguf", "Q4_0", device="cpu")
    plain = (place / "single.gguf").read_bytes()
    assert (place / "out" / "none-Q4_0.gguf").read_bytes() == plain
