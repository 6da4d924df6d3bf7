"""Types that are no file types, results in several files, and metadata that say what of."""

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.batches.journal import journal_of
from gpukit.batches.portions import portions
from gpukit.batches.preparing import prepare
from gpukit.batches.reading import read_plan
from gpukit.conversion import sensitivity
from gpukit.errors import ArgumentError
from gpukit.events import ignore
from gpukit.formats.gguf_split import GGUFModel
from gpukit.sources.base import Source

PLAN = """
sources: [plain]
types: [{target_bpw: 9}, {like: 'like-{source}.gguf', name: as}]
output: out/{source}-{type}.gguf
options: {device: cpu}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    build("plain", tmp_path)
    gpukit.convert(tmp_path / "plain", tmp_path / "like-plain.gguf", "Q5_0", device="cpu")
    return tmp_path


def _plan(place: Path, text: str) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def test_targets_have_the_bytes_of_single_commands(place: Path) -> None:
    plan = _plan(place, PLAN)
    foreseen = gpukit.plan_batch(plan)
    made = gpukit.batch(plan)
    assert [row.type for row in made.rows] == ["9bpw", "as"]
    wishes = (
        gpukit.Options(target_bpw=9),
        gpukit.Options(like=place / "like-plain.gguf"),
    )
    for before, row, options in zip(foreseen.rows, made.rows, wishes, strict=True):
        out = place / "single.gguf"
        gpukit.quantize(place / "plain", out, options=options, device="cpu")
        assert Path(row.output).read_bytes() == out.read_bytes()
        assert before.size == row.size == out.stat().st_size
    assert {str(row.state) for row in gpukit.batch_status(plan).rows} == {"done"}
    _plan(place, PLAN.replace("target_bpw: 9", "target_bpw: 10, name: 9bpw"))
    (why, _) = (row.why for row in gpukit.batch_status(plan).rows)
    assert why == "target_bpw was 9.0 and is 10.0 since it was made"
    _plan(place, PLAN.replace("target_bpw: 9", "target_size: 1K"))
    (refused,) = gpukit.plan_batch(plan).refused
    assert "--target-size of 1,000 bytes cannot be reached" in refused


def test_weights_are_looked_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the table, for two targets, and when they are made, also by other processes."""
    build("tied", place)
    looked: list[str] = []
    measure = sensitivity.measure

    def counted(source: Source, *words: Any) -> list[list[float]]:
        looked.append(source.path.name)
        return measure(source, *words)

    monkeypatch.setattr(sensitivity, "measure", counted)
    text = PLAN.replace("[plain]", "[plain, tied]")
    text = text.replace("{like: 'like-{source}.gguf', name: as}", "{target_bpw: 6}")
    plan = _plan(place, text)
    made = gpukit.batch(plan)
    assert looked == ["plain", "tied"]
    single = place / "single.gguf"
    gpukit.quantize(place / "tied", single, options=gpukit.Options(target_bpw=6), device="cpu")
    assert Path(made.rows[3].output).read_bytes() == single.read_bytes()
    for row in made.rows:
        Path(row.output).unlink()
    prepared = prepare(read_plan(plan), None, False, ignore)
    first, second = portions(prepared, keep_going=False)
    assert len(first.prepared.inputs._losses) == len(second.prepared.inputs._losses) == 1


def test_what_is_to_be_like_must_be_there(place: Path) -> None:
    (place / "like-plain.gguf").unlink()
    with pytest.raises(ArgumentError, match=r"plan.yaml:3: like: .*like-plain.gguf: no such file"):
        gpukit.batch(_plan(place, PLAN))


def test_a_result_in_several_files(place: Path) -> None:
    text = "sources: [plain]\ntypes: [Q8_0]\noutput: out/x.gguf\n"
    plan = _plan(place, text + "options: {device: cpu, split_max_size: 60K}\n")
    foreseen = gpukit.plan_batch(plan).rows[0]
    (row,) = gpukit.batch(plan).rows
    files = sorted((place / "out").glob("*.gguf"))
    assert len(files) > 2
    assert foreseen.size == row.size == sum(file.stat().st_size for file in files)
    assert journal_of(place / "out" / "x.gguf").exists()
    gpukit.convert(place / "plain", place / "x.gguf", "Q8_0", split_max_size=60_000, device="cpu")
    for file in files:
        assert file.read_bytes() == (place / file.name).read_bytes()
    (again,) = gpukit.batch(plan).rows
    assert (str(again.state), again.made) == ("done", False)
    # What a batch has made is no source.
    sources = "sources: [plain, 'out/*.gguf']\ntypes: [F16]\noutput: y/{source}.gguf\n"
    other = place / "other.yaml"
    other.write_text(sources)
    with pytest.raises(ArgumentError, match="no model matches"):
        gpukit.plan_batch(other)
    files[1].unlink()
    assert str(gpukit.batch_status(plan).rows[0].state) == "changed"
    for file in files:
        file.unlink(missing_ok=True)
    assert str(gpukit.batch_status(plan).rows[0].state) == "missing"


def test_each_result_says_what_it_was_made_of(place: Path) -> None:
    lora(place / "plain", place / "lora", targets=("q_proj",))
    text = "sources: [plain]\nadapters: [none, lora]\ntypes: [Q8_0, Q4_0]\n"
    text += "output: out/{adapter}-{type}.gguf\noptions: {device: cpu, provenance: true}\n"
    made = gpukit.batch(_plan(place, text))
    for row in made.rows:
        adapters = () if row.adapter == "none" else (place / "lora",)
        out = place / "single.gguf"
        gpukit.convert(
            place / "plain", out, row.type, adapters=adapters, provenance=True, device="cpu"
        )
        assert Path(row.output).read_bytes() == out.read_bytes()
        with GGUFModel(out) as model:
            assert model.get("gpukit.recipe.type") == row.type
