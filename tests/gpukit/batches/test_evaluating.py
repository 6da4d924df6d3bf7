"""Evaluation of a batch's results: the numbers of `gpukit perplexity`, kept by the journals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA
from support.loras import lora

import gpukit
from gpukit.batches import needs
from gpukit.batches.journal import journal_of, last_record
from gpukit.batches.result import Told
from gpukit.batches.states import State
from gpukit.batches.workers import Worker
from gpukit.errors import ArgumentError
from gpukit.evaluation.measuring import Scored
from gpukit.recipes import perplexity

PLAN = """
sources: [tiny]
types: [Q8_0, Q2_K]
output: out/{type}.gguf
options: {device: cpu}
evaluate: {text: text.txt, context: 32, chunks: 3, against: source}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "tiny-shakespeare", tmp_path / "tiny")
    shutil.copy(DATA / "shakespeare.txt", tmp_path / "text.txt")
    return tmp_path


def _plan(place: Path, text: str = PLAN) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def _numbers(result: gpukit.BatchResult) -> list[dict[str, Any]]:
    """The evaluations, without what the clock says."""
    found = [dict(row.evaluation or {}) for row in result.rows]
    return [
        {key: value for key, value in each.items() if key not in ("seconds", "tokens_per_second")}
        for each in found
    ]


def test_the_numbers_are_those_of_perplexity(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(place)
    before = gpukit.plan_batch(plan)
    assert [row.evaluation for row in before.rows] == [{"state": "to do"}] * 2
    loaded: list[str] = []
    load = perplexity.Subject.load

    def counted(self: Any, *words: Any, **more: Any) -> Any:
        loaded.append(Path(self.path).name)
        return load(self, *words, **more)

    monkeypatch.setattr(perplexity.Subject, "load", counted)
    heard: list[Told] = []
    made = gpukit.batch(plan, watch=heard.append)
    # The source goes through its layers once for both.
    assert sorted(loaded) == ["Q2_K.gguf", "Q8_0.gguf", "tiny"]
    told = [(t.number, t.count, t.row.state) for t in heard if t.event is None][-4:]
    assert told == [(n, 4, state) for n in (3, 4) for state in (State.EVALUATING, State.DONE)]
    for row, found in zip(made.rows, _numbers(made), strict=True):
        single = gpukit.perplexity(
            row.output, place / "text.txt", num_ctx=32, chunks=3, against=place / "tiny",
            device="cpu",
        ).as_json()  # fmt: skip
        assert found.pop("state") == "done"
        assert found == {key: single[key] for key in found}
        assert {"perplexity", "error", "kld", "kld_median", "kld_999", "same_top"} <= found.keys()
        assert row.bits_per_weight == pytest.approx(single["bits_per_weight"], abs=1e-4)
    again = gpukit.batch(plan)
    assert len(loaded) == 3 + 2 * 2
    for result in (again, gpukit.batch_status(plan), gpukit.plan_batch(plan)):
        assert _numbers(result) == _numbers(made)
    assert not list(place.rglob("*.windows-*"))
    # Another text is another evaluation, of the same files.
    kept = (place / "out" / "Q8_0.gguf").stat().st_mtime_ns
    other = _plan(place, PLAN.replace("chunks: 3, against: source", "chunks: 2"))
    assert [row.evaluation for row in gpukit.batch_status(other).rows] == [{"state": "to do"}] * 2
    rows = gpukit.batch(other).rows
    assert [row.numbers["chunks"] for row in rows] == [2, 2]
    assert all("kld" not in row.numbers for row in rows)
    assert (place / "out" / "Q8_0.gguf").stat().st_mtime_ns == kept


def test_a_killed_evaluation_goes_on(place: Path) -> None:
    plan = _plan(place)

    def until_the_fourth(told: Told) -> None:
        if isinstance(told.event, Scored) and told.number == 4 and told.event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpukit.batch(plan, watch=until_the_fourth)
    (windows,) = place.rglob("*.windows-*")
    assert len(windows.read_text().splitlines()) == 3
    states = [(row.evaluation or {})["state"] for row in gpukit.batch_status(plan).rows]
    assert states == ["done", "to do"]
    heard: list[Told] = []
    went_on = gpukit.batch(plan, watch=heard.append)
    assert [row.made for row in went_on.rows] == [False, False]
    told = [str(t.event.text) for t in heard if isinstance(t.event, gpukit.Status)]
    assert any(text.startswith("2 of 3 chunks are known from ") for text in told)
    shutil.rmtree(place / "out")
    assert _numbers(gpukit.batch(plan)) == _numbers(went_on)


def test_an_evaluation_that_fails_leaves_the_result(place: Path) -> None:
    (place / "short.txt").write_text("too short")
    text = PLAN + "overrides:\n- match: {type: Q8_0}\n  evaluate: {text: short.txt}\n"
    plan = _plan(place, text)
    stopped = gpukit.batch(plan)
    assert [(str(r.state), (r.evaluation or {})["state"]) for r in stopped.rows] == [
        ("done", "failed"), ("done", "to do"),
    ]  # fmt: skip
    through = gpukit.batch(plan, keep_going=True)
    (missed,) = through.not_evaluated
    assert "short.txt: the text has 3 tokens; two" in str(missed.evaluation)
    assert through.rows[1].numbers["chunks"] == 3
    record = last_record(journal_of(place / "out" / "Q8_0.gguf"))
    assert record is not None
    assert record.is_done
    assert (record.evaluation or {})["event"] == "not evaluated"
    _plan(place, text.replace("{text: short.txt}", "false"))
    assert [row.evaluation is None for row in gpukit.batch(plan).rows] == [True, False]


@pytest.mark.parametrize("more", ["", ", combine: {method: linear}"])
def test_beside_the_source_with_its_adapters(place: Path, more: str) -> None:
    lora(place / "tiny", place / "lora", targets=("q_proj",))
    text = PLAN.replace("types: [Q8_0, Q2_K]", "adapters: [lora]\ntypes: [F32]")
    (row,) = gpukit.batch(_plan(place, text.replace("cpu", f"cpu{more}"))).rows
    # What was merged and the model with its adapter beside it differ by rounding alone.
    assert abs(row.numbers["kld"]) < 1e-5
    assert row.numbers["same_top"] == 1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("text: text.txt, ", "", r"plan.yaml:6: 'text' is missing in evaluate"),
        ("text.txt", "none.txt", r"plan.yaml:6: .*none.txt: no such file"),
        ("context: 32", "context: 1", r"plan.yaml:6: context is 1; windows have"),
        ("chunks: 3", "chunks: 0", r"plan.yaml:6: chunks is 0"),
        ("chunks: 3", "chnks: 3", r"plan.yaml:6: unknown key 'chnks'; known: text, context"),
        ("against: source", "against: nobody.gguf", r"plan.yaml:6: .*nobody.gguf"),
    ],
)
def test_what_is_refused(place: Path, old: str, new: str, told: str) -> None:
    with pytest.raises((ArgumentError, gpukit.NotFoundError), match=told):
        gpukit.plan_batch(_plan(place, PLAN.replace(old, new)))


def test_everything_is_json(place: Path) -> None:
    text = PLAN.replace("[Q8_0, Q2_K]", "[Q8_0]")
    found = gpukit.batch(_plan(place, text)).as_json()
    (job,) = json.loads(json.dumps(found, allow_nan=False))["jobs"]
    assert job["evaluation"]["state"] == "done"
    assert job["bits_per_weight"] > 8


SPREAD = """
sources: [tiny, other]
types: [Q8_0, F16]
output: out/{source}-{type}.gguf
options: {device: cpu}
evaluate: {text: text.txt, context: 32, chunks: 2, against: source}
"""


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_measure_what_one_does(place: Path) -> None:
    shutil.copytree(place / "tiny", place / "other")
    plan = _plan(place, SPREAD)
    heard: list[Told] = []
    made = gpukit.batch(plan, jobs=2, watch=heard.append)
    states = [str(t.row.state) for t in heard if t.event is None and t.number > 4]
    assert sorted(states) == ["done"] * 4 + ["evaluating"] * 4
    assert {t.count for t in heard if t.number > 4} == {8}
    assert all(row.made for row in made.rows)
    shutil.rmtree(place / "out")
    assert _numbers(gpukit.batch(plan)) == _numbers(made)
    # A worker that fails is told of; without --keep-going nothing else begins.
    (place / "short.txt").write_text("too short")
    more = SPREAD + "overrides:\n- match: {source: tiny}\n  evaluate: {text: short.txt}\n"
    failed = gpukit.batch(_plan(place, more), jobs=2, keep_going=True)
    assert [row.source for row in failed.not_evaluated] == ["tiny", "tiny"]
    assert _numbers(failed)[2:] == _numbers(made)[2:]


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_has_not_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place / "tiny", place / "other")
    plan = _plan(place, SPREAD)
    started: list[Worker] = []
    take = Worker.take

    def noted(self: Worker, portion: Any) -> None:
        started.append(self)
        take(self, portion)

    monkeypatch.setattr(Worker, "take", noted)
    killed: list[str] = []

    def watch(told: Told) -> None:
        if told.row.state is State.EVALUATING and told.row.source == "tiny" and not killed:
            killed.append(told.row.output)
            # The last two that began measure, a source each, in the plan's order.
            started[-2].process.kill()

    found = gpukit.batch(plan, jobs=2, keep_going=True, watch=watch)
    (missed,) = found.not_evaluated
    assert missed.output == killed[0]
    assert "was killed (SIGKILL)" in str(missed.evaluation)
    assert all(row.numbers for row in found.rows if row is not missed)
    assert not gpukit.batch(plan).not_evaluated


def test_models_that_memory_does_not_hold_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(place, PLAN.replace("cpu", "cpu, memory: 1M"))
    (place / "meminfo").write_text("MemAvailable:    1100 kB\n")
    monkeypatch.setattr(needs, "MEMINFO", place / "meminfo")
    told = (
        r"to evaluate, models of \d+ bytes are needed in memory at a time, 1126400 bytes are free"
    )
    with pytest.raises(gpukit.GpukitError, match=told):
        gpukit.batch(plan)
    assert not (place / "out").exists()
    _plan(place, PLAN.replace("cpu", "cpu, memory: 1M").replace("evaluate", "#"))
    assert gpukit.plan_batch(plan).refused == ()
