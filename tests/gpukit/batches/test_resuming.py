"""Batches that are killed: the next goes on at the tensor, and nothing is left over."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.conversion import noting, pipeline, resuming
from gpukit.formats.ledger import LEDGER, ledger_of

KILLS = Path(__file__).parents[3] / "scripts" / "kills"


class Killed(BaseException):
    """What ends a run."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    build("plain", folder)
    lora(folder / "plain", folder / "lora", targets=("q_proj", "down_proj"), seed=1)
    return folder


@pytest.mark.thorough
def test_24_jobs_killed_ten_times() -> None:
    """3 architectures, an adapter or none, 4 types."""
    done = kills("--of", "batch", "--kills", "10", "--share", "0.1", "--seed", "5")
    assert done.startswith("10 kills ("), done
    assert "), 24 outputs ended: 0 lost, 0 half, 0 orphans, 0 of" in done


@pytest.mark.thorough
def test_what_is_killed_is_whole_in_the_end() -> None:
    done = kills("--of", "quantize,merge,folder,many", "--kills", "16", "--seed", "3")
    assert ": 0 lost, 0 half, 0 orphans, 0 of" in done


def kills(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, KILLS, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1 << 15)
    monkeypatch.setattr(noting, "SECONDS", 0.001)
    for name in ("plain", "lora"):
        os.symlink(inputs / name, tmp_path / name)
    return tmp_path


PLAN = """
sources: [plain]
adapters: [none, lora]
types: [Q8_0, Q4_K]
output: {}/{{source}}-{{adapter}}-{{type}}.gguf
options: {{device: cpu}}
"""


def _plan(place: Path, out: str = "out", **changes: str) -> Path:
    path, text = place / "plan.yaml", PLAN.format(out)
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text)
    return path


def _killed(plan: Path, share: float = 0.5) -> None:
    def watch(told: Any) -> None:
        event = told.event
        if isinstance(event, gpukit.Step) and event.done >= share * event.total:
            raise Killed

    with pytest.raises(Killed):
        gpukit.batch(plan, watch=watch)


def _left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.endswith(LEDGER)}


def test_the_disk_has_part_of_it_already(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(place)
    needed = gpukit.plan_batch(plan).disks[0].needed
    _killed(plan)
    assert gpukit.plan_batch(plan).disks[0].needed < needed


def test_a_source_that_changed_is_made_anew(place: Path, inputs: Path) -> None:
    plan = _plan(place)
    _killed(plan)
    ledger = ledger_of(place / "out" / "plain-none-Q8_0.gguf")
    head = json.loads(ledger.read_text().splitlines()[0])
    for file in head["of"]["source"]:
        os.utime(inputs / "plain" / file["name"])
    assert {str(row.state) for row in gpukit.batch(plan).rows} == {"done"}
    assert hidden(place / "out") == []


def test_what_the_plan_has_no_more_goes(place: Path) -> None:
    plan = _plan(place)
    _killed(plan)
    assert _left(place / "out") == {
        f".plain-none-{kind}.gguf.{LEDGER}" for kind in ("Q8_0", "Q4_K_M")
    }
    # Others' files are left alone: of another plan, and of a single command.
    single = place / "out" / "single.gguf"
    with pytest.raises(Killed):
        gpukit.convert(place / "plain", single, "Q8_0", device="cpu", resume=True, report=_kill)
    gpukit.batch(_plan(place, "other", Q8_0="F16"))
    assert _left(place / "out") == {f".single.gguf.{LEDGER}"}
    assert hidden(place / "other") == []


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def _kill(event: object) -> None:
    if isinstance(event, gpukit.Step) and event.done:
        raise Killed


def test_a_kill_between_name_and_ledger(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(place)

    def kill(self: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resuming.Ledger, "remove", kill)
        with pytest.raises(Killed):
            gpukit.batch(plan)
    assert len(_left(place / "out")) >= 1
    gpukit.batch(plan)
    assert hidden(place / "out") == []
