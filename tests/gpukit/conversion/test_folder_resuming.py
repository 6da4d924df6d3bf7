"""Merges into a model folder that end before their time: the next goes on, to the same bytes."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import build
from support.loras import lora

import gpukit
from gpukit.conversion import noting, pipeline, resumed_files, resuming
from gpukit.conversion.stages import Stages
from gpukit.formats import atomic, folder_writer
from gpukit.formats.ledger import ledger_of, partial_of


class Killed(BaseException):
    """What ends a run."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of a few rows, which are noted at once."""
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 1 << 15)
    monkeypatch.setattr(noting, "SECONDS", 0.001)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    build("plain", folder)
    lora(folder / "plain", folder / "lora", targets=("q_proj", "down_proj"), seed=1)
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The output and the row of each piece that is read."""
    found: list[tuple[int, int]] = []
    read = Stages._read

    def noted(self: Stages, slab: Any, buffer: Any) -> Any:
        found.extend((piece.output, piece.at) for piece in slab)
        return read(self, slab, buffer)

    monkeypatch.setattr(Stages, "_read", noted)
    return found


def merge(inputs: Path, out: Path, weight: float = 1.0, size: int = 500_000, **how: Any) -> Any:
    how = {"resume": True, **how}
    adapters = [(inputs / "lora", weight)]
    return gpukit.merge(
        inputs / "plain", adapters, out, max_shard_size=size, device="cpu", **how
    )  # fmt: skip


def killed(inputs: Path, out: Path, share: float) -> None:
    def report(event: object) -> None:
        if isinstance(event, gpukit.Step) and event.done >= share * event.total:
            raise Killed

    with pytest.raises(Killed):
        merge(inputs, out, report=report)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pieces(out: Path) -> list[tuple[int, int]]:
    text = ledger_of(out).read_text()
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [(line["tensor"], line["start"]) for line in lines if "tensor" in line]


def test_the_next_run_goes_on(
    inputs: Path, tmp_path: Path, made: list[tuple[int, int]]
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "places" / "out"
    out.parent.mkdir()
    undisturbed = merge(inputs, whole, resume=False)
    everything = sorted(made)
    # The card says what the model is called.
    shutil.move(whole, tmp_path / "out")
    for share in (0.2, 0.5, 0.5, 1.0):
        killed(inputs, out, share)
        done = pieces(out)
        assert len(done) == len(set(done)) > 0
        assert names(out.parent) == sorted([partial_of(out, 0).name, ledger_of(out).name])
    made.clear()
    # What a run of half a config.json has left, and whatever else is no shard.
    (partial_of(out, 0) / "config.json").write_text("{")
    (partial_of(out, 0) / "other").mkdir()
    result = merge(inputs, out)
    assert not set(done) & set(made)
    assert sorted({*done, *made}) == everything
    assert names(out.parent) == ["out"]
    expected = {**tree(tmp_path / "out")}
    expected["README.md"] = expected["README.md"].replace(b"whole", b"out")
    assert tree(out) == expected
    assert len([name for name in expected if name.endswith(".safetensors")]) > 2
    ours, theirs = (_rounded(found.as_json()) for found in (result, undisturbed))
    assert (ours["size"], len(ours["paths"])) == (
        sum(map(len, expected.values())), len(theirs["paths"]),
    )  # fmt: skip
    assert ours["changes"] == theirs["changes"]


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    return f"{found:.10g}" if isinstance(found, float) else found


@pytest.mark.parametrize("moment", ["rename", "remove"])
def test_killed_at_the_end(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str,
    made: list[tuple[int, int]],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    merge(inputs, out)
    expected = tree(out)
    shutil.rmtree(out)

    def kill(*words: Any) -> None:
        raise Killed

    where = (resuming.Ledger, "remove") if moment == "remove" else (
        folder_writer.atomic, "put_in_place"
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(*where, kill)
        with pytest.raises(Killed):
            merge(inputs, out)
    assert out.exists() == (moment == "remove")
    made.clear()
    assert len(merge(inputs, out).paths) == len(expected)
    assert made == []
    assert tree(out) == expected
    assert names(tmp_path) == ["out"]
    # It is whole now, and its folder no place for another.
    with pytest.raises(gpukit.ArgumentError, match="a folder that is not empty; remove it or name"):
        merge(inputs, out)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i: os.utime(i / "plain" / "config.json"), "the source's config.json has changed"),
        (
            lambda i: os.utime(i / "lora" / "adapter_model.safetensors"),
            "the adapter's adapter_model.safetensors has changed",
        ),
        (lambda i: {"weight": 0.5}, "an adapter's weight was 1 and is 0.5"),
        (lambda i: {"size": 400_000}, "max_shard_size was 500000 and is 400000"),
        (lambda i: {"type": "F32"}, "type was '' and is 'F32'"),
    ],
)
def test_what_has_changed_is_refused(
    inputs: Path, tmp_path: Path, change: Callable[[Path], Any], told: str
) -> None:
    for name in ("plain", "lora"):
        shutil.copytree(inputs / name, tmp_path / name)
    place = tmp_path / "place"
    place.mkdir()
    killed(tmp_path, place / "out", 0.5)
    how = change(tmp_path) or {}
    left = tree(place)
    with pytest.raises(gpukit.ArgumentError) as error:
        merge(tmp_path, place / "out", **how)
    assert str(error.value) == (
        f"{place / 'out'}: {told} since a killed run began it; run without --resume to begin anew"
    )
    assert tree(place) == left
    merge(tmp_path, place / "out", resume=False, **how)
    assert names(place) == ["out"]


@pytest.mark.parametrize("lost", ["folder", "shard", "ledger"])
def test_what_is_damaged_is_made_anew(inputs: Path, tmp_path: Path, lost: str) -> None:
    out = tmp_path / "out"
    merge(inputs, out)
    expected = tree(out)
    shutil.rmtree(out)
    killed(inputs, out, 0.5)
    if lost == "folder":
        shutil.rmtree(partial_of(out, 0))
    elif lost == "shard":
        next(partial_of(out, 0).glob("*.safetensors")).unlink()
    else:
        ledger_of(out).unlink()
    heard: list[object] = []
    merge(inputs, out, report=heard.append)
    assert tree(out) == expected
    assert names(tmp_path) == ["out"]
    lines = [event.text for event in heard if isinstance(event, gpukit.Warned)]
    assert len([line for line in lines if "of a killed" in line or "is gone" in line]) == (
        lost != "ledger"
    )


def test_another_run_and_a_place_that_is_taken(inputs: Path, tmp_path: Path) -> None:
    out, tried = tmp_path / "out", [0]

    def another(event: object) -> None:
        if isinstance(event, gpukit.Step) and event.done and not tried[0]:
            tried[0] += 1
            with pytest.raises(gpukit.ArgumentError, match="out: another run is making it; wait"):
                merge(inputs, out)
            (out / "others").mkdir(parents=True)

    with pytest.raises(gpukit.DiskError, match="out: Directory not empty"):
        merge(inputs, out, report=another)
    shutil.rmtree(out)
    merge(inputs, out)
    assert names(tmp_path) == ["out"]


def test_values_that_are_not_finite_leave_nothing(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "plain", tmp_path / "plain")
    path = next((tmp_path / "plain").glob("*.safetensors"))
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\xff" * 64)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(gpukit.CheckpointError):
        gpukit.merge(
            tmp_path / "plain", [inputs / "lora"], place / "out", device="cpu", resume=True
        )
    assert names(place) == []


def test_a_disk_without_room(
    inputs: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, made: list[tuple[int, int]]
) -> None:
    """It is refused before the first byte, and where something else fills it the run is gone on
    with when there is room."""
    out = small_disk / "out"
    with pytest.raises(gpukit.DiskError, match=r"out/model-00001-.*: .* bytes are needed, .* free"):
        merge(inputs, out)
    assert names(small_disk) == []
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "need_room", lambda *_: None)
        patch.setattr(resumed_files, "check_room", lambda *_: None)
        with pytest.raises(gpukit.DiskError) as error:
            merge(inputs, out)
    assert str(error.value).startswith(f"{out}/model-00001-of-")
    assert ": No space left on device (" in str(error.value)
    assert str(error.value).endswith(" bytes are free); make room or write to another disk")
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    done = pieces(out)
    made.clear()
    merge(inputs, out)
    assert not set(done) & set(made)
    assert names(small_disk) == ["out"]


@pytest.mark.parametrize("resume", [False, True])
def test_the_folder_that_one_is_in(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """It is replaced: what is told of are the files of the new one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    result = merge(inputs, Path(), resume=resume)
    assert {path.parent for path in result.paths} == {here}
    assert result.size == sum(map(len, tree(here).values())) > 1 << 20
    assert names(tmp_path) == ["here"]
