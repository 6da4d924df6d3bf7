"""`--jobs N`: the same bytes by several processes, and what remains when one of them dies."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.batches import needs, preparing, shares, workers
from gpukit.batches.journal import journal_of, last_record
from gpukit.batches.needs import Need, device_needs, memory_need
from gpukit.batches.portions import portions
from gpukit.batches.preparing import prepare
from gpukit.batches.reading import read_plan
from gpukit.batches.result import Row, Told
from gpukit.batches.shares import Shares
from gpukit.batches.states import State
from gpukit.batches.throttle import throttled
from gpukit.batches.workers import Worker
from gpukit.conversion import device_memory, pipeline
from gpukit.events import ignore
from gpukit_kernels import turns

PLAN = """
sources: [plain, tied]
adapters: [none, lora]
types: [F16, Q8_0]
output: out/{source}-{adapter}-{type}.gguf
options: {device: cpu}
"""
TWO = "sources: [broken, plain]\ntypes: [Q8_0, F16]\noutput: '{source}-{type}.gguf'\n"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("plain", "tied"):
        build(name, folder)
    lora(folder / "plain", folder / "lora", targets=("q_proj",))
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """Every worker that a batch starts."""
    found: list[Worker] = []

    class Noted(Worker):
        def __init__(self, number: int, shares: Shares) -> None:
            super().__init__(number, shares)
            found.append(self)

    monkeypatch.setattr(workers, "Worker", Noted)
    return found


def _states(result: gpukit.BatchResult) -> list[str]:
    return [str(row.state) for row in result.rows]


def _broken(place: Path) -> Path:
    """A plan of two sources, of which the first has a NaN."""
    shutil.copytree(place / "plain", place / "broken")
    weights = place / "broken/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\xff\x7f")
    (place / "plan.yaml").write_text(TWO + "options: {device: cpu}\n")
    return place / "plan.yaml"


def test_two_workers_make_the_bytes_of_one(place: Path, started: list[Worker]) -> None:
    plan, heard = place / "plan.yaml", list[Told]()
    made = gpukit.batch(plan, jobs=2, watch=heard.append)
    assert (_states(made), made.workers, len(started)) == (["done"] * 8, 2, 2)
    assert all(worker.process.returncode == 0 for worker in started)
    begun = [told for told in heard if told.event is None and told.row.state == "running"]
    assert [told.number for told in begun] == list(range(1, 9))
    assert {told.count for told in heard} == {8}
    with_steps = {(told.row.source, told.row.adapter) for told in heard
                  if isinstance(told.event, gpukit.Step)}  # fmt: skip
    assert with_steps == {(row.source, row.adapter) for row in made.rows}
    by_two = {row.output: Path(row.output).read_bytes() for row in made.rows}
    shutil.rmtree(place / "out")
    for row in gpukit.batch(plan).rows:
        assert Path(row.output).read_bytes() == by_two[row.output]
    assert [row.made for row in gpukit.batch(plan, jobs=2).rows] == [False] * 8
    assert len(started) == 2  # nothing was left


def _killing(number: int, when: Callable[[Told], bool], started: list[Worker]) -> Any:
    """A watch that sends a signal to the worker of the first job for which `when` holds."""
    done: list[str] = []

    def watch(told: Told) -> None:
        if not done and when(told):
            done.append(told.row.output)
            for worker in started:
                targets = {at.job.target for at in worker.portion.standings if worker.portion}
                if told.row.output in targets:
                    os.kill(worker.process.pid, number)
                    worker.process.wait()

    return watch, done


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "the worker that made it was killed (SIGKILL), as a system without me"),
        (signal.SIGTERM, "the worker that made it ended with code 143"),
    ],
)
def test_a_worker_that_dies_is_one_failed_job(
    number: int, told: str, place: Path, started: list[Worker]
) -> None:
    plan = place / "plan.yaml"
    watch, killed = _killing(number, lambda t: isinstance(t.event, gpukit.Step), started)
    made = gpukit.batch(plan, jobs=2, keep_going=True, watch=watch)
    (row,) = (row for row in made.rows if row.output == killed[0])
    others = {str(other.state) for other in made.rows if other is not row}
    assert others == {"done"}
    # It may have been through when the signal came: then the output says so.
    assert row.state == "done" or (row.state == "failed" and told in row.why)
    record = last_record(journal_of(Path(row.output)))
    assert record is not None
    if row.state == "failed":
        assert row.why.startswith(f"{row.output}: {told}")
        assert record.end is not None
        assert record.end["error"] == row.why
        assert _states(gpukit.batch_status(plan)) == _states(made)
    gpukit.batch(plan, jobs=2)
    assert not list((place / "out").glob(".*.tmp"))
    assert _states(gpukit.batch_status(plan)) == ["done"] * 8


def test_a_worker_that_cannot_begin(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CODE", "import sys; {path!r}; sys.exit('no such {handle}')")
    made = gpukit.batch(place / "plan.yaml", jobs=2, keep_going=True)
    assert _states(made) == ["failed"] * 8
    assert "the worker that made it ended with code 1: no such" in made.rows[0].why


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("keep_going", [False, True])
def test_a_job_that_fails(keep_going: bool, place: Path) -> None:
    plan = _broken(place)
    made = gpukit.batch(plan, jobs=2, keep_going=keep_going)
    states = _states(made)
    assert states[0] == "failed"
    if keep_going:
        assert states == ["failed", "failed", "done", "done"]
    else:
        assert states[1] == "to do"
        assert "failed" not in states[2:]  # as far as the other worker was
    assert _states(gpukit.batch_status(plan)) == states
    assert not list(place.glob(".*.tmp"))


@pytest.mark.usefixtures("forked_workers")
def test_the_workers_end_with_the_batch(place: Path, started: list[Worker]) -> None:
    class Ended(BaseException):
        pass

    def watch(told: Told) -> None:
        if isinstance(told.event, gpukit.Step):
            raise Ended

    with pytest.raises(Ended):
        gpukit.batch(place / "plan.yaml", jobs=2, watch=watch)
    assert all(worker.process.returncode is not None for worker in started)
    assert not list((place / "out").glob(".*.tmp"))
    assert _states(gpukit.batch(place / "plan.yaml")) == ["done"] * 8


def test_as_many_workers_as_there_are_groups() -> None:
    assert shares.shares(None, ["cpu"] * 9, 0).workers == 1
    assert shares.shares(3, ["cpu"] * 9, 0).workers == 3
    assert shares.shares(8, ["cpu"] * 2, 0).workers == 2
    # One a GPU, where any of them will do.
    assert shares.shares(None, ["auto"] * 9, 4).workers == 4
    assert shares.shares(None, ["cuda:1"] * 9, 4).workers == 1
    found = shares.shares(6, ["auto"] * 9, 4)
    assert [found.device(n) for n in range(6)] == [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)]
    assert [found.workers_on(n) for n in range(4)] == [2, 2, 1, 1]
    assert Shares(2).device(1) is None
    with pytest.raises(gpukit.ArgumentError, match="--jobs 0: a number of workers is needed"):
        gpukit.batch("none.yaml", jobs=0)


def test_the_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert [Shares(n).threads for n in (1, 2, 3, 8)] == [7, 3, 2, 1]
    assert Shares(2).environment()["OMP_NUM_THREADS"] == "3"


def test_a_worker_has_its_gpu_and_not_anothers(place: Path) -> None:
    (place / "plan.yaml").write_text(PLAN.replace("cpu", "auto"))
    prepared = prepare(read_plan(place / "plan.yaml"), None, False, ignore)
    first, *_ = portions(prepared, keep_going=False)
    moved = first.on("cuda:3")
    assert [at.job.options.device for at in moved.standings] == ["cuda:3"] * 2
    own = moved.on("cuda:1")
    assert [at.job.options.device for at in own.standings] == ["cuda:3"] * 2
    assert first.on(None) is first
    assert first.without([at.job.target for at in first.standings]) is None


def test_what_workers_need_of_gpus() -> None:
    crew = Shares(6, 4)
    found = device_needs([("auto", 10), ("cuda", 30), ("cpu", 99), ("cuda:2", 20)], crew, [50] * 4)
    assert found == [
        Need("cuda:0", 60, 50), Need("cuda:1", 60, 50), Need("cuda:2", 120, 50),
        Need("cuda:3", 30, 50),
    ]  # fmt: skip
    assert device_needs([("cpu", 99)], crew, [50] * 4) == []


def test_what_workers_need_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "_available", lambda: 100)
    assert memory_need([7, 30, 20, 1], 2) == Need("memory", 50, 100)
    assert memory_need([7], 2) == Need("memory", 7, 100)
    assert memory_need([], 2) is None


def test_a_plan_that_no_gpu_holds_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "plan.yaml").write_text(PLAN.replace("cpu", "auto"))
    monkeypatch.setattr(preparing, "free_on_gpus", lambda devices: [10 << 30, 500 << 20])
    looked = gpukit.plan_batch(place / "plan.yaml")
    assert looked.workers == 2
    assert [need.place for need in looked.gpus] == ["cuda:0", "cuda:1"]
    (refused,) = looked.refused
    assert refused == (
        f"cuda:1: {looked.gpus[1].needed} bytes are needed by the workers there, {500 << 20} are "
        "free; give fewer --jobs, `memory` in the plan's options, or `device: cpu`"
    )
    assert gpukit.plan_batch(place / "plan.yaml", jobs=1).refused == ()


def test_the_bytes_of_a_gpu_are_those_of_the_slabs(place: Path) -> None:
    assert device_memory.TURNS == turns.DEEP
    with gpukit.plan(place / "plain", "Q4_0") as opened:
        plan = opened.records
        small = device_memory.device_bytes(plan, 4 << 30)
        merged = device_memory.device_bytes(plan, 4 << 30, merged=True)
    weights = sum(spec.n_elements for spec in plan.specs)
    assert weights < 3 * pipeline.GPU_SLAB_WEIGHTS
    assert small == 16 * weights + device_memory.CONTEXT
    assert merged == 24 * weights + device_memory.CONTEXT
    # Of a larger model three slabs, of as many weights as the host's buffers let them have.
    large = replace(
        plan,
        outputs=tuple(
            replace(o, spec=replace(o.spec, name=f"{n}.{o.spec.name}"))
            for n in range(40)
            for o in plan.outputs
        ),
    )
    for budget, slab in ((4 << 30, 1 << 24), (1 << 30, (1 << 30) // (16 * 11))):
        found = device_memory.device_bytes(large, budget)
        assert found == 16 * 3 * slab + device_memory.CONTEXT


def test_steps_are_told_a_few_times_a_second() -> None:
    heard: list[Told] = []
    row = Row("a", "none", "F16", "a.gguf", State.RUNNING)
    watch = throttled(heard.append, 0.1)
    for done in (1, 2, 3, 9):
        watch(Told(1, 1, row, gpukit.Step("x", done, 9)))
    watch(Told(1, 1, row))
    steps = [told.event.done for told in heard if isinstance(told.event, gpukit.Step)]
    assert (steps, heard[-1].event) == ([1, 9], None)
    time.sleep(0.11)
    watch(Told(1, 1, row, gpukit.Step("x", 4, 9)))
    assert len(heard) == 4
