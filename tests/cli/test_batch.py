"""`gpukit batch` as a user meets it: tables, JSON, exit codes, and kills at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkpoints import build
from support.command_line import gpukit
from support.loras import lora
from support.terminal import Terminal

import gpukit as library
from gpukit.batches.journal import journal_of, last_record
from gpukit.batches.result import Row, Told
from gpukit.batches.schema import json_schema
from gpukit.batches.states import State
from gpukit.events import Step
from gpukit_cli.batch_progress import Board

PLAN = """
sources: [plain, tied]
adapters: [none, lora]
types: [F16, Q8_0, Q4_0]
output: out/{source}/{adapter}-{type}.gguf
options: {device: cpu}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    for name in ("plain", "tied"):
        build(name, folder)
    lora(folder / "plain", folder / "lora", targets=("q_proj",))
    return folder


def _plan(place: Path, name: str, text: str = PLAN) -> Path:
    """A plan with outputs of its own."""
    path = place / f"{name}.yaml"
    path.write_text(text.replace("out/", f"{name}/"))
    return path


def test_a_plan_from_the_table_to_the_files(place: Path) -> None:
    plan = _plan(place, "whole")
    dry = gpukit("batch", plan, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert lines[0].split() == ["SOURCE", "ADAPTER", "TYPE", "OUTPUT", "SIZE", "STATE"]
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["plain", "none", "F16"], ["plain", "none", "Q8_0"],
    ]  # fmt: skip
    assert lines[-1].startswith("12 jobs (12 to do), ")
    assert not (place / "whole").exists()
    done = gpukit("batch", plan, "--json", "--summary", place / "summary.json")
    assert done.returncode == 0, done.stderr
    assert f"[12/12] {place}/whole/tied/lora-Q4_0.gguf: " in done.stderr
    assert "[10/12] warning: " in done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((place / "summary.json").read_text())
    assert (found["counts"], len(found["jobs"])) == ({"done": 12}, 12)
    assert found["size"] == sum(Path(job["output"]).stat().st_size for job in found["jobs"])
    again = gpukit("batch", plan)
    assert (again.returncode, again.stderr) == (0, "")
    assert "12 jobs (12 done)" in again.stdout
    status = json.loads(gpukit("batch", "status", plan, "--json", "--shard", "2/2").stdout)
    assert {job["source"] for job in status["jobs"]} == {"tied"}
    assert (status["shard"], status["counts"]) == ("2/2", {"done": 6})


def test_a_job_that_fails_ends_in_one(place: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    (tmp_path / "out.gguf").write_text("mine")
    plan.write_text(f"sources: [{place}/plain]\ntypes: [Q8_0]\noutput: out.gguf\n")
    for words in ((), ("--dry-run",)):
        done = gpukit("batch", plan, *words)
        assert done.returncode == (1 if words else 2)
        assert done.stderr.splitlines()[-1] == (
            f"Error: {tmp_path}/out.gguf: it is there, and no journal says that a batch has made "
            "it; remove it, or take --force to write it anew"
        )
    assert (tmp_path / "out.gguf").read_text() == "mine"
    weights = build("f16", tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\xff\x7f")
    plan.write_text(f"sources: [f16, {place}/plain]\ntypes: [Q8_0]\noutput: '{{source}}.gguf'\n")
    done = gpukit("batch", plan, "--keep-going", "--quiet", "--summary", tmp_path / "s.json")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: 1 of 2 jobs failed; {tmp_path}/f16.gguf: ")
    jobs = json.loads((tmp_path / "s.json").read_text())["jobs"]
    assert [(job["state"], job["made"]) for job in jobs] == [("failed", False), ("done", True)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no plan; name one plan, as in gpukit batch plan.yaml"),
        (("status",), "no plan; name one plan"),
        (("a", "b"), "2 words; name one plan"),
        (("none.yaml",), "none.yaml: No such file or directory: name the YAML file of a plan"),
        (("none.yaml", "--shard", "3/2"), "--shard 3/2: I/N is needed"),
    ],
)
def test_words_that_are_wrong(words: tuple[str, ...], told: str) -> None:
    done = gpukit("batch", *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {told}")


def test_the_schema_is_printed() -> None:
    assert json.loads(gpukit("batch", "--schema").stdout) == json_schema()


def _started(plan: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpukit_cli", "batch", str(plan), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _after_lines(process: subprocess.Popen[str], count: int, number: int) -> None:
    """Send signal `number` after `count` lines, and wait."""
    assert process.stderr is not None
    with process.stderr:
        for _ in range(count):
            process.stderr.readline()
        process.send_signal(number)
        process.wait()


def _finished(folder: Path) -> dict[Path, int]:
    """The outputs whose journals say that they are done, and when they were made."""
    found = {}
    for path in folder.rglob("*.gguf"):
        record = last_record(journal_of(path))
        if record is not None and record.is_done:
            found[path] = path.stat().st_mtime_ns
    return found


def test_killed_again_and_again_it_ends_with_the_same_bytes(place: Path) -> None:
    plan, folder = _plan(place, "killed"), place / "killed"
    finished: dict[Path, int] = {}
    for lines, later in ((2, 0.0), (5, 0.02), (3, 0.05), (6, 0.1)):
        process = _started(plan)
        assert process.stderr is not None
        for _ in range(lines):
            process.stderr.readline()
        time.sleep(later)
        process.kill()
        process.wait()
        process.stderr.close()
        now = _finished(folder)
        assert finished.items() <= now.items()
        finished = now
    assert finished
    done = gpukit("batch", plan)
    assert done.returncode == 0, done.stderr
    assert finished.items() <= _finished(folder).items()
    undisturbed = [path for path in folder.rglob("*") if path.is_file()]
    assert len(undisturbed) == 24, undisturbed  # 12 outputs, their journals, nothing else
    for source in ("plain", "tied"):
        for adapter in ((), (place / "lora",)):
            for kind in ("F16", "Q8_0", "Q4_0"):
                single = place / "single.gguf"
                library.convert(place / source, single, kind, adapters=adapter, device="cpu")
                name = f"{'lora' if adapter else 'none'}-{kind}.gguf"
                assert (folder / source / name).read_bytes() == single.read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end(number: int, place: Path) -> None:
    plan = _plan(place, f"ended-{number}")
    process = _started(plan)
    _after_lines(process, 3, number)
    assert process.returncode == 128 + number
    assert not list((place / f"ended-{number}").rglob("*.tmp"))


def test_on_a_terminal_there_is_a_table(place: Path) -> None:
    plan = _plan(place, "shown", PLAN.replace("[plain, tied]", "[plain]"))
    code = "from gpukit_cli.app import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    with Terminal(
        code, "batch", str(plan), folder=place, environment=environment, columns=160
    ) as shown:
        shown.until("6 jobs (6 done)")
        assert "6 of 6 jobs" in shown.screen
        assert "6/6" in shown.screen


def test_the_table_tells_rate_and_time_left() -> None:
    board = Board()
    row = Row("a", "none", "F16", "a.gguf", State.RUNNING)
    board.hear(Told(1, 4, row), 10.0)
    board.hear(Told(1, 4, row, Step("quantizing", 2_000_000, 8_000_000)), 12.0)
    assert board.cells() == [("1/4", "a.gguf", "25 %, 1 MB/s, 6 s left")]
    assert board.total() == "0 of 4 jobs"
    done = Row("a", "none", "F16", "a.gguf", State.DONE, size=3_000_000, seconds=5.0)
    board.hear(Told(1, 4, done), 15.0)
    assert board.cells() == [("1/4", "a.gguf", "3 MB in 5.0 s")]
    assert board.total() == "1 of 4 jobs, 15 s left"
    for number in range(2, 20):
        board.hear(Told(number, 20, row), 16.0)
    assert len(board.cells()) == 8
