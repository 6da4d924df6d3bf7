"""`gpukit batch` as a user meets it: tables, JSON, exit codes, and kills at any moment."""

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console
from support import forked
from support.batches import assert_only_outputs
from support.checkpoints import build
from support.command_line import gpukit
from support.forked import Forked
from support.loras import lora
from support.pages import data_of
from support.terminal import Terminal

import gpukit as library
from gpukit.batches.journal import journal_of, last_record
from gpukit.batches.result import Row, Told
from gpukit.batches.schema import json_schema
from gpukit.batches.states import State
from gpukit.events import Step
from gpukit_cli.batch_board import Board

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
    assert data_of((place / "summary.html").read_text(), "gpukit-batch") == found
    assert (found["counts"], len(found["jobs"])) == ({"done": 12}, 12)
    assert found["size"] == sum(Path(job["output"]).stat().st_size for job in found["jobs"])
    again = gpukit("batch", plan)
    assert (again.returncode, again.stderr) == (0, "")
    assert "12 jobs (12 done)" in again.stdout
    status = json.loads(gpukit("batch", "status", plan, "--json", "--shard", "2/2").stdout)
    assert {job["source"] for job in status["jobs"]} == {"tied"}
    assert (status["shard"], status["counts"]) == ("2/2", {"done": 6})


def test_a_summary_replaces_nothing_but_a_summary(place: Path, tmp_path: Path) -> None:
    base = build("tied", tmp_path)
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"sources: [{base}]\ntypes: [F16]\noutput: '{{source}}-{{type}}.gguf'\n")
    (tmp_path / "other.html").write_text("<!DOCTYPE html>mine")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, told in (
        ("plan.yaml", "input and output are the same file"),
        ("tied/model.safetensors", "something else than a summary is there"),
        ("tied/config.json", "something else than a summary is there"),
        ("other.json", "something else than a summary is there"),
        ("tied-F16.gguf", "a result of "),
        ("..", "a folder; name the file to write"),
        ("", "a folder; name the file to write"),
        ("none/s.json", "there is no folder "),
    ):
        for words in (("--dry-run",), ("status",), ()):
            plain = [word for word in words if word == "status"]
            more = [word for word in words if word != "status"]
            summary = tmp_path / name if name else ""
            done = gpukit("batch", *plain, plan, *more, "--summary", summary)
            assert (done.returncode, done.stdout) == (2, ""), (name, words, done.stderr)
            assert (told in done.stderr, done.stderr.count("\n")) == (True, 1), done.stderr
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words in (("--dry-run",), (), ()):
        done = gpukit("batch", plan, *words, "--summary", tmp_path / "s.json")
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "s.json").read_text())
        assert found["counts"] == {"to do" if words else "done": 1}


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
    shown = gpukit("batch", "logs", plan).stdout.splitlines()
    assert [line.split(" ")[-1] if line[0] != " " else line.split()[1] for line in shown] == [
        f"{tmp_path}/f16.gguf", "running", "failed:", f"{tmp_path}/plain.gguf", "running", "done:",
    ]  # fmt: skip
    assert "is nan; a model with such weights" in shown[2]
    for word in ("2", "plain.gguf", tmp_path / "plain.gguf", "pl*"):
        found = json.loads(gpukit("batch", "logs", plan, word, "--json").stdout)
        (log,) = found["jobs"]
        assert [line["event"] for line in log["lines"]] == ["running", "done"]
    done = gpukit("batch", "logs", plan, "nobody")
    assert done.returncode == 2
    assert "nobody: no job of " in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no plan; name one plan, as in gpukit batch plan.yaml"),
        (("status",), "no plan; name one plan"),
        (("logs",), "no plan; name one plan"),
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


def _started(plan: Path, *words: str) -> tuple[Forked, TextIO]:
    """A batch, and what it says on stderr."""
    reading, writing = os.pipe()
    with open(writing, "wb") as err:
        return forked.command("batch", plan, *words, err=err), open(reading)


def _after_lines(process: Forked, said: TextIO, count: int, number: int) -> None:
    """Send signal `number` after `count` lines, and wait."""
    with said:
        for _ in range(count):
            said.readline()
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


@pytest.mark.thorough
def test_killed_again_and_again_it_ends_with_the_same_bytes(place: Path) -> None:
    plan, folder = _plan(place, "killed"), place / "killed"
    finished: dict[Path, int] = {}
    for lines, later in ((2, 0.0), (5, 0.02), (3, 0.05), (6, 0.1)):
        process, said = _started(plan)
        with said:
            for _ in range(lines):
                said.readline()
            time.sleep(later)
            process.kill()
            process.wait()
        now = _finished(folder)
        assert finished.items() <= now.items()
        finished = now
    assert finished
    done = gpukit("batch", plan)
    assert done.returncode == 0, done.stderr
    assert finished.items() <= _finished(folder).items()
    assert_only_outputs(folder, 12)
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
    process, said = _started(plan)
    _after_lines(process, said, 3, number)
    assert process.returncode == 128 + number
    assert not list((place / f"ended-{number}").rglob("*.tmp"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command(number: int, place: Path) -> None:
    name = f"workers-{number}"
    process, said = _started(_plan(place, name), "--jobs", "2")
    said.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    _after_lines(process, said, 2, number)
    assert len(children) == 2
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    for child in children:
        ends = time.monotonic() + 20
        while _works(child) and time.monotonic() < ends:
            time.sleep(0.02)
        assert not _works(child)
    # The marks of the folders are the command's own: the next batch removes them.
    left = [path.name for path in (place / name).rglob("*.tmp")]
    assert all(name.startswith(f".batch.gpukit-{process.pid}-") for name in left)
    assert not left or number == signal.SIGKILL
    done = gpukit("batch", place / f"{name}.yaml", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "12 jobs (12 done)" in done.stdout
    assert_only_outputs(place / name, 12)


def _works(pid: str) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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


def _row(state: State = State.RUNNING, output: str = "a.gguf", why: str = "") -> Row:
    return Row("a", "none", "F16", output, state, why, size=3_000_000, seconds=5.0)


def test_the_table_tells_rate_and_time_left() -> None:
    board = Board()
    board.hear(Told(1, 4, _row()), 10.0)
    assert board.total() == "0 of 4 jobs, 1 running"
    board.hear(Told(1, 4, _row(), Step("quantizing", 0, 8_000_000)), 10.0)
    board.hear(Told(1, 4, _row(), Step("quantizing", 2_000_000, 8_000_000)), 12.0)
    assert board.cells() == [("1/4", "a.gguf", "25 %, 1 MB/s, 6 s left")]
    # Four such jobs have 32 MB.
    assert board.total() == "0 of 4 jobs, 1 running, 1 MB/s, 30 s left"
    board.hear(Told(2, 4, _row(output="b.gguf")), 12.0)
    board.hear(Told(2, 4, _row(output="b.gguf"), Step("quantizing", 6_000_000, 8_000_000)), 14.0)
    assert board.cells()[1] == ("2/4", "b.gguf", "75 %, 3 MB/s, 1 s left")
    board.hear(Told(1, 4, _row(), Step("quantizing", 8_000_000, 8_000_000)), 15.0)
    board.hear(Told(1, 4, _row(State.DONE)), 15.0)
    assert board.cells()[0] == ("1/4", "a.gguf", "3 MB in 5.0 s")
    board.hear(Told(2, 4, _row(State.FAILED, "b.gguf", "no room")), 15.0)
    assert board.cells()[1] == ("2/4", "b.gguf", "failed: no room")
    assert board.total() == "2 of 4 jobs, 1 failed, 2.8 MB/s, 6 s left"


def test_a_table_has_what_is_under_way_and_is_no_larger_than_a_screen() -> None:
    board = Board()
    for number in range(1, 30):
        state = State.RUNNING if number % 3 == 0 else State.DONE
        board.hear(Told(number, 40, _row(state, f"{'folder/' * 20}{number}.gguf")), 1.0)
    assert [int(cells[0].split("/")[0]) for cells in board.cells(12)] == sorted(
        [*range(3, 30, 3), 26, 28, 29]
    )
    assert board.cells(3)[1:] == [("6/40", f"{'folder/' * 20}6.gguf", "running"),
                                  ("", "and 7 more under way", "")]  # fmt: skip
    for width in (1, 9, 40, 100, 300):
        for height in (1, 2, 5, 60):
            text = io.StringIO()
            console = Console(file=text, width=width, height=height, force_terminal=False)
            console.print(board.drawn(console.size))
            lines = text.getvalue().splitlines()
            assert len(lines) <= max(min(height, 21), 2)
            assert max(map(len, lines)) <= width
    assert "…" in lines[0] or f"{'folder/' * 20}" in lines[0]


def test_the_table_of_several_workers_in_a_window_that_changes(place: Path) -> None:
    plan = _plan(place, "dragged")
    code = "from gpukit_cli.app import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    with Terminal(
        code, "batch", str(plan), "--jobs", "2", folder=place, environment=environment, columns=160
    ) as shown:
        # Jobs may end between two looks at the table.
        shown.until("/12")
        shown.resize(30)
        shown.until("of 12 jobs")
        shown.resize(120)
        shown.until("12 jobs (12 done)")
        assert shown.end() == 0
