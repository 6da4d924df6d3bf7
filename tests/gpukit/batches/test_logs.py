"""Logs of jobs: bounded, and no harm to a job that cannot keep one."""

from pathlib import Path

import pytest
from support.checkpoints import build

import gpukit
from gpukit.batches import logs
from gpukit.batches.logs import batch_logs
from gpukit.batches.result import Told


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    build("plain", tmp_path)
    path = tmp_path / "plan.yaml"
    path.write_text(
        "sources: [plain]\ntypes: [Q8_0]\noutput: x/{type}.gguf\noptions: {device: cpu}\n"
    )
    return path


def test_a_log_is_bounded_and_half_a_line_is_left_out(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 300)
    for _ in range(12):
        gpukit.batch(plan, force=True)
        (plan.parent / "x" / "Q8_0.gguf").unlink()
    files = sorted((plan.parent / "x").glob("*.log*"))
    assert [file.name for file in files] == [
        "Q8_0.gguf.gpukit.log.1.jsonl", "Q8_0.gguf.gpukit.log.jsonl",
    ]  # fmt: skip
    assert sum(file.stat().st_size for file in files) < 3 * 300
    with files[1].open("a") as file:
        file.write('{"time": "2026')
    (log,) = batch_logs(plan)
    assert [line.event for line in log.lines[-2:]] == ["running", "done"]
    assert log.lines[-1].text.endswith(" s")


def test_a_log_that_cannot_be_written_fails_no_job(plan: Path) -> None:
    (plan.parent / "x" / "Q8_0.gguf.gpukit.log.jsonl").mkdir(parents=True)
    (row,) = gpukit.batch(plan).rows
    assert row.made
    assert batch_logs(plan)[0].lines == ()


def test_warnings_are_kept(plan: Path) -> None:
    heard: list[Told] = []
    plan.write_text(plan.read_text() + "evaluate: {text: no.txt}\n")
    (plan.parent / "no.txt").write_text("short")
    gpukit.batch(plan, watch=heard.append)
    warned = [t.event.text for t in heard if isinstance(t.event, gpukit.Warned)]
    (log,) = batch_logs(plan, "Q8*")
    assert [line.text for line in log.lines if line.event == "warning"] == warned
    assert log.lines[-1].event == "not evaluated"
