"""Folders of results that are lost, or refuse, while a batch writes to them."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR

import pytest
from support.batches import assert_only_outputs
from support.checkpoints import build

import gpukit
from gpukit.batches.result import Told
from gpukit.conversion import noting, pipeline
from gpukit.formats.atomic import temporary_name

PLAN = """
sources: [plain, tied]
types: [Q8_0, F16]
output: out/{source}-{type}.gguf
options: {device: cpu}
"""
# What is lost, and what is said of the job at which it is.
LOST = r"out is not the folder that the batch began with: it was removed, renamed or unmounted; bri"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("plain", "tied"):
        build(name, folder)
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1 << 15)
    monkeypatch.setattr(noting, "SECONDS", 0.001)
    for name in ("plain", "tied"):
        os.symlink(inputs / name, tmp_path / name)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


@pytest.fixture
def disk(place: Path, small_disk: Path) -> Path:
    """A file system of 16 MB, the results'."""
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    (place / "plan.yaml").write_text(PLAN.replace("out/", "small/"))
    return small_disk


def _at_the_second_source(act: Callable[[], object]) -> Callable[[Told], None]:
    acted: list[Told] = []

    def watch(told: Told) -> None:
        event = told.event
        if not isinstance(event, gpukit.Step) or told.row.source != "tied" or acted:
            return
        if 2 * event.done >= event.total:
            acted.append(told)
            act()

    return watch


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("keep_going", [False, True])
def test_a_folder_that_is_renamed(place: Path, keep_going: bool, jobs: int) -> None:
    plan, out, away = place / "plan.yaml", place / "out", place / "away"
    watch = _at_the_second_source(lambda: out.rename(away))
    lost = gpukit.batch(plan, keep_going=keep_going, jobs=jobs, watch=watch)
    assert {row.state for row in lost.rows} <= {"failed", "to do"}
    assert all(LOST in row.why for row in lost.failed)
    # Nothing was begun in a folder of the same name; what was done is where it was.
    assert not out.exists()
    away.rename(out)
    again = gpukit.batch(plan)
    assert {row.state for row in again.rows} == {"done"}
    if jobs == 1:
        assert [row.made for row in again.rows] == [False, False, True, True]
    assert_only_outputs(out, 4)


def test_a_folder_that_is_removed_is_not_made_again_unseen(place: Path) -> None:
    out = place / "out"
    watch = _at_the_second_source(lambda: shutil.rmtree(out))
    lost = gpukit.batch(place / "plan.yaml", keep_going=True, watch=watch)
    assert [str(row.state) for row in lost.rows] == ["failed"] * 4
    assert not out.exists()
    assert {row.state for row in gpukit.batch(place / "plan.yaml").rows} == {"done"}
    assert_only_outputs(out, 4)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that gives folders another number each time that somebody asks."""
    stat, numbers = Path.stat, itertools.count(1 << 40)

    def another(self: Path, **how: bool) -> os.stat_result:
        found = stat(self, **how)
        if not S_ISDIR(found.st_mode):
            return found
        return os.stat_result((found.st_mode, next(numbers), *found[2:]))

    monkeypatch.setattr(Path, "stat", another)


@pytest.mark.usefixtures("forgetful")
def test_folders_of_changing_numbers_stay_the_same(place: Path) -> None:
    out = place / "out"
    marks: list[list[str]] = []

    def watch(told: Told) -> None:
        marks.append([path.name for path in out.iterdir() if path.name.startswith(".batch.")])

    assert {row.state for row in gpukit.batch(place / "plan.yaml", watch=watch).rows} == {"done"}
    assert {len(found) for found in marks} == {1}
    assert_only_outputs(out, 4)


@pytest.mark.usefixtures("forgetful")
def test_one_of_them_that_is_another_is_not(place: Path) -> None:
    out = place / "out"

    def replaced() -> None:
        out.rename(place / "away")
        out.mkdir()

    watch = _at_the_second_source(replaced)
    lost = gpukit.batch(place / "plan.yaml", keep_going=True, watch=watch)
    assert [str(row.state) for row in lost.rows] == ["failed"] * 4
    assert all(LOST in row.why for row in lost.failed)
    assert list(out.iterdir()) == []


def test_a_mark_that_a_killed_batch_has_left_goes(place: Path) -> None:
    out = place / "out"
    gpukit.batch(place / "plan.yaml")
    left = subprocess.Popen(["true"])
    left.wait()
    name = temporary_name(out / "batch").name.replace(f"-{os.getpid()}-", f"-{left.pid}-")
    (out / name).touch()
    # Nothing is left to be made.
    gpukit.batch(place / "plan.yaml")
    assert_only_outputs(out, 4)


def test_results_that_go_while_others_are_made(place: Path) -> None:
    first = place / "out" / "plain-F16.gguf"
    made = gpukit.batch(place / "plan.yaml", watch=_at_the_second_source(first.unlink))
    assert [row.output for row in made.failed] == [str(first)]
    assert made.failed[0].why == f"{first}: it was made, and is gone; start the batch again"


def test_a_file_system_that_is_unmounted(place: Path, disk: Path) -> None:
    def unmount() -> None:
        subprocess.run(["umount", "-l", disk], check=True)

    try:
        watch = _at_the_second_source(unmount)
        lost = gpukit.batch(place / "plan.yaml", keep_going=True, watch=watch)
        assert [str(row.state) for row in lost.rows] == ["failed"] * 4
        # On the disk below there is nothing.
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)


def test_a_disk_that_gets_full(place: Path, disk: Path) -> None:
    def fill() -> None:
        fd = os.open(disk / "fill", os.O_CREAT | os.O_WRONLY)
        try:
            while True:
                os.write(fd, bytes(4096))
        except OSError:
            os.close(fd)

    full = gpukit.batch(place / "plan.yaml", watch=_at_the_second_source(fill))
    assert [str(row.state) for row in full.rows] == ["done", "done", "failed", "to do"]
    assert "are needed, 0 are free; make room or write to another disk" in full.rows[2].why
    (disk / "fill").unlink()
    again = gpukit.batch(place / "plan.yaml")
    assert [row.made for row in again.rows] == [False, False, True, True]
    assert_only_outputs(disk, 4)
