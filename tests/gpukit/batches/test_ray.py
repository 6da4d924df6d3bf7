"""`--ray`: two nodes on one machine, of which one dies, make the bytes of one process."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import registry
from support.batches import assert_only_outputs
from support.checkpoints import DATA, build
from support.command_line import gpukit as command
from support.loras import lora
from support.pushing import BY_TWO, check_pushes

import gpukit
from gpukit.batches import ray_cluster
from gpukit.batches.nodes import PROCESS, Wanted, wanted
from gpukit.batches.portions import Portion, portions
from gpukit.batches.preparing import prepare
from gpukit.batches.ray_task import check_node
from gpukit.batches.reading import read_plan
from gpukit.batches.result import Told
from gpukit.events import ignore

PLAN = """
sources: [plain, tied, small.gguf]
adapters: [none, lora]
types: [F16, Q8_0, Q4_0, Q4_K]
output: out/{source}-{adapter}-{type}.gguf
options: {device: cpu, allow_requantize: true}
"""
NODE = {
    "num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False,
    "resources": {"disk": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("plain", "tied"):
        build(name, folder)
    gpukit.convert(folder / "tied", folder / "small.gguf", "Q8_0", device="cpu")
    lora(folder / "plain", folder / "lora", targets=("q_proj",))
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
    yield found
    found.shutdown()


@pytest.fixture
def portion(place: Path) -> Portion:
    prepared = prepare(read_plan(place / "plan.yaml"), None, False, ignore)
    return next(iter(portions(prepared, keep_going=False)))


def _states(result: gpukit.BatchResult) -> list[str]:
    return [str(row.state) for row in result.rows]


@pytest.mark.thorough
def test_one_of_two_nodes_dies_and_the_bytes_are_the_same(
    place: Path, cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = place / "plan.yaml"
    by_one = {row.output: Path(row.output).read_bytes() for row in gpukit.batch(plan).rows}
    shutil.rmtree(place / "out")
    node = cluster.add_node(**NODE)
    running: dict[str, str] = {}
    finished: dict[str, int] = {}
    began: list[str] = []

    def watch(told: Told) -> None:
        row = told.row
        if told.event is None and row.state == "running":
            began.append(row.output)
            running[row.source + row.adapter] = row.output
        elif told.event is None:
            running.pop(row.source + row.adapter, None)
            if not killed:
                finished[row.output] = Path(row.output).stat().st_mtime_ns
        # Each node has a core, and a task asks for one: two groups under way are on two nodes.
        if not killed and finished and len(running) == 2:
            killed.append(row.output)
            cluster.remove_node(node, allow_graceful=False)

    killed: list[str] = []
    made = gpukit.batch(plan, ray=cluster.address, watch=watch)
    assert _states(made) == ["done"] * 24
    assert killed
    # What Ray's threads print of it would be among the result.
    assert capfd.readouterr().out == ""
    for row in made.rows:
        assert Path(row.output).read_bytes() == by_one[row.output]
    for output, when in finished.items():
        assert began.count(output) == 1
        assert Path(output).stat().st_mtime_ns == when
    assert_only_outputs(place / "out", 24)
    again = gpukit.batch(plan, ray=cluster.address)
    assert [row.made for row in again.rows] == [False] * 24


@pytest.mark.thorough
def test_a_job_that_fails(place: Path, cluster: Any) -> None:
    weights = place / "plain/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\xff\x7f")
    text = "sources: [plain, tied]\ntypes: [Q8_0, F16]\noutput: '{source}-{type}.gguf'\n"
    (place / "plan.yaml").write_text(text + "options: {device: cpu}\n")
    done = command("batch", place / "plan.yaml", "--ray", cluster.address, "--keep-going")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"Error: 2 of 4 jobs failed; {place}/plain-Q8_0.gguf: ")
    assert all(line.startswith(("[", "Error")) for line in lines), done.stderr
    assert _states(gpukit.batch_status(place / "plan.yaml")) == ["failed", "failed", "done", "done"]
    made = gpukit.batch(place / "plan.yaml", ray=cluster.address)
    assert [row.seconds is not None for row in made.rows[:2]] == [True, False]  # ended by the first


@pytest.mark.thorough
def test_tasks_measure_results(place: Path, cluster: Any) -> None:
    plan = place / "plan.yaml"
    shutil.copy(DATA / "shakespeare.txt", place / "text.txt")
    text = "sources: [plain, tied]\ntypes: [Q8_0]\noutput: '{source}.gguf'\n"
    evaluate = "evaluate: {text: text.txt, context: 32, chunks: 2, against: source}\n"
    plan.write_text(f"{text}options: {{device: cpu}}\n{evaluate}")
    heard: list[str] = []
    made = gpukit.batch(plan, ray=cluster.address, watch=lambda t: heard.append(str(t.row.state)))
    assert heard.count("evaluating") >= 2
    assert [row.numbers["chunks"] for row in made.rows] == [2, 2]
    assert all(row.made for row in made.rows)
    status = gpukit.batch_status(plan)
    assert [row.numbers["kld"] for row in status.rows] == [row.numbers["kld"] for row in made.rows]


@pytest.mark.thorough
def test_the_tasks_end_with_the_batch(place: Path, cluster: Any) -> None:
    class Ended(BaseException):
        pass

    def watch(told: Told) -> None:
        if told.event is not None:
            raise Ended

    with pytest.raises(Ended):
        gpukit.batch(place / "plan.yaml", ray=cluster.address, watch=watch)
    assert "running" not in _states(gpukit.batch_status(place / "plan.yaml"))
    assert not list(place.rglob(".*.tmp"))


def test_a_batch_for_a_cluster_does_not_ask_for_this_machines_memory(place: Path) -> None:
    (place / "plan.yaml").write_text(PLAN.replace("device: cpu", "device: auto, memory: 900G"))
    looked = gpukit.plan_batch(place / "plan.yaml", ray="auto")
    assert (looked.memory, looked.gpus, looked.refused) == (None, (), ())


def test_without_ray(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(gpukit.ArgumentError, match=r"not installed; pip install 'gpukit\[ray\]'"):
        gpukit.batch(place / "plan.yaml", ray="auto")
    assert not (place / "out").exists()


def test_no_cluster(place: Path) -> None:
    pytest.importorskip("ray")
    done = command("batch", place / "plan.yaml", "--ray", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: --ray 127.0.0.1:1: no cluster answers")


def test_a_node_without_the_shared_path(portion: Portion, place: Path) -> None:
    with pytest.raises(gpukit.DiskError, match=r"lock is not there; plan, models, adapters and"):
        check_node(portion)
    (place / "plan.yaml.gpukit").mkdir()
    (place / "plan.yaml.gpukit/lock").touch()
    check_node(portion)
    (place / "plain").rename(place / "elsewhere")
    with pytest.raises(gpukit.DiskError, match="/plain is not there"):
        check_node(portion)
    with pytest.raises(gpukit.GpukitError, match=r"has gpukit .*, the driver 0\.0\.1; install one"):
        check_node(replace(portion, version="0.0.1"))


def test_what_a_task_asks_for(portion: Portion, place: Path) -> None:
    small, large = {"CPU": 8, "memory": 64e9}, {"CPU": 64, "GPU": 8, "memory": 512e9}
    memory = portion.buffers + PROCESS
    assert portion.buffers > 0
    assert wanted(portion, [small, large], None) == Wanted(8, 0, memory, 0)
    assert wanted(portion, [small, large], 4) == Wanted(2, 0, memory, 0)
    assert wanted(portion, [{**small, "disk": 5}], 99) == Wanted(1, 0, memory, 1)
    any_device = _on(portion, "auto")
    assert wanted(any_device, [small], None) == Wanted(8, 0, memory, 0)
    assert wanted(any_device, [small, large], None) == Wanted(8, 1, memory, 0)
    assert wanted(any_device, [small, large], 2).options() == {
        "num_cpus": 32, "num_gpus": 1, "memory": memory, "resources": {},
    }  # fmt: skip
    with pytest.raises(gpukit.GpukitError, match="1 GPUs are needed, the largest node has 0"):
        wanted(_on(portion, "cuda"), [small], None)
    with pytest.raises(gpukit.ArgumentError, match="device cuda:1: Ray says which GPU a task has"):
        wanted(_on(portion, "cuda:1"), [large], None)
    with pytest.raises(gpukit.GpukitError, match=r"bytes of memory are needed, .* has 1000; add"):
        wanted(portion, [{"CPU": 1, "memory": 1000}], None)


def _on(portion: Portion, device: str) -> Portion:
    first = portion.standings[0]
    options = first.job.options.model_copy(update={"device": device})
    moved = replace(first, job=replace(first.job, options=options))
    return replace(portion, prepared=replace(portion.prepared, standings=(moved,)))


def test_a_result_that_is_not_here_has_failed(
    place: Path, portion: Portion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "SECONDS_TO_SETTLE", 0.0)
    gathered = ray_cluster.Gathered(portion.prepared, lambda told: None)
    output = portion.standings[0].job.target
    gathered.set(output, made=True)
    ray_cluster._check_here(portion.prepared, gathered)
    assert "made by a node, and not here" in gathered.row(output).why


@pytest.mark.thorough
def test_tasks_send_results(
    place: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path / "models"))
    with registry.serve() as server:
        (place / "plan.yaml").write_text(BY_TWO.format(server.host))
        check_pushes(place / "plan.yaml", server, ray=cluster.address)
