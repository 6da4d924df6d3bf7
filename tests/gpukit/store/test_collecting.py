"""Garbage that goes and what stays, and blobs that are hashed again."""

import fcntl
import os
import time
from pathlib import Path

import pytest
from support.stores import CONFIG_FILE, ORPHAN, PARTIAL, add, file_names, files

from gpukit import Store
from gpukit.errors import NotFoundError, StoreError
from gpukit.events import Event, Step, Warned
from gpukit.store import change
from gpukit.store.manifest import LAYER_PREFIX

PART = f"{PARTIAL}-0"
TEMPORARY = "sha256-1234567890"
WEIGHTS = b"GGUF" * 5000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def put(store: Store, name: str, age: float) -> Path:
    path = store.blobs / name
    path.write_text("x")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_only_what_is_an_hour_old_goes(store: Store) -> None:
    manifest = add(store, "m", "MIT")
    used = store.blobs / manifest.layers[0].digest.replace(":", "-")
    os.utime(used, (0, 0))
    for name in (ORPHAN, PARTIAL, PART, TEMPORARY, "notes.txt"):
        put(store, name, 3500)
    (store.blobs / "sha256-folder").mkdir()
    found = store.gc()
    assert (found.removed, found.young) == ((), 3)
    for name in (ORPHAN, PARTIAL, PART, TEMPORARY, "notes.txt"):
        put(store, name, 3700)
    assert store.gc(dry_run=True).removed == tuple(sorted([ORPHAN, PARTIAL, PART, TEMPORARY]))
    assert (store.blobs / ORPHAN).exists()
    found = store.gc()
    assert found.removed == tuple(sorted([ORPHAN, PARTIAL, PART, TEMPORARY]))
    assert found.nbytes >= 4
    assert files(store) == file_names("MIT") | CONFIG_FILE | {"notes.txt", "sha256-folder"}
    assert store.gc().removed == ()


def test_a_pull_that_goes_on_keeps_its_files(store: Store) -> None:
    add(store, "m")
    partial = put(store, PARTIAL, 9000)
    put(store, PART, 10)
    assert store.gc().young == 1  # what tells of a part has just been written
    put(store, PART, 9000)
    with partial.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.gc().removed == ()
    assert store.gc().removed == (PARTIAL, PART)


def test_what_a_living_command_counts_on_stays(store: Store) -> None:
    with change(store) as changes:
        layer = changes.add_bytes(b"new", LAYER_PREFIX + "license")
        path = store.blobs / layer.digest.replace(":", "-")
        os.utime(path, (0, 0))
        assert store.gc().removed == ()
        assert path.exists()


def test_a_clock_that_was_off(store: Store) -> None:
    add(store, "m")
    put(store, ORPHAN, -9000)
    events: list[Event] = []
    found = store.gc(report=events.append)
    assert (found.removed, found.ahead) == ((), 1)
    (event,) = events
    assert isinstance(event, Warned)
    assert "in the future: it stays; the clock is off, or was: touch it where" in event.text
    put(store, ORPHAN, -100)
    assert store.gc().young == 1


def test_a_corrupt_manifest_keeps_everything(store: Store) -> None:
    manifest = add(store, "m", "MIT")
    store.manifest_path(store.find("m")).write_bytes(manifest.encode()[:60])
    put(store, ORPHAN, 9000)
    with pytest.raises(StoreError, match=r"'m:latest': the manifest is corrupt.*nothing is coll"):
        store.gc()
    assert (store.blobs / ORPHAN).exists()


def test_links_go_and_not_what_they_lead_to(store: Store, tmp_path: Path) -> None:
    add(store, "m")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    os.utime(outside / "mine", (0, 0))
    (store.blobs / ORPHAN).symlink_to(outside / "mine")
    os.utime(store.blobs / ORPHAN, (0, 0), follow_symlinks=False)
    (store.scratch / "1-dead").symlink_to(outside)  # where a job's folder would be
    assert store.gc().removed == (ORPHAN,)
    assert (outside / "mine").read_text() == "mine"
    assert [path.name for path in store.scratch.iterdir()] == ["lock"]


def test_no_store_at_all(store: Store) -> None:
    assert store.gc().removed == ()
    assert store.verify() == ()
    assert not store.root.exists()


def test_blobs_are_hashed_again(store: Store) -> None:
    add(store, "a", model=WEIGHTS, license=b"MIT")
    add(store, "b", model=WEIGHTS, license=b"GPL")
    events: list[Event] = []
    assert [model.problems for model in store.verify(report=events.append)] == [(), ()]
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].done == steps[-1].total == len(WEIGHTS) + 24 + 3 + 3
    weights, licence, config = store.manifest(store.find("b")).blobs
    path = store.blobs / weights.digest.replace(":", "-")
    path.write_bytes(WEIGHTS[:-1] + b"x")
    a, b = store.verify()
    assert a.problems == b.problems
    assert f"model blob {weights.digest} hashes to sha256:" in a.problems[0]
    (store.blobs / licence.digest.replace(":", "-")).write_text("long")
    (store.blobs / config.digest.replace(":", "-")).unlink()
    (found,) = store.verify("B")
    assert [line.split(" sha256:")[1][65:].split(":")[0] for line in found.problems[1:]] == [
        "has 4 bytes, the manifest says 3", "is missing",
    ]  # fmt: skip
    assert not any("\n" in line for line in found.problems)
    with pytest.raises(NotFoundError):
        store.verify("c")


def test_a_manifest_that_cannot_be_read_is_told_of(store: Store) -> None:
    add(store, "a", model=WEIGHTS)
    store.manifest_path(store.find("a")).write_text("{")
    (found,) = store.verify()
    assert "the manifest is corrupt" in found.problems[0]


def test_a_blob_that_is_a_pipe(store: Store) -> None:
    manifest = add(store, "a", "", model=b"GGUF")
    path = store.blobs / manifest.layers[0].digest.replace(":", "-")
    path.unlink()
    os.mkfifo(path)
    (found,) = store.verify()
    assert "cannot be read" in found.problems[0]


def test_a_model_that_is_replaced_meanwhile(store: Store) -> None:
    """What the old one lacks is no fault of the new one; a model that was removed is left out."""
    add(store, "a", model=b"old")
    add(store, "b", model=WEIGHTS)
    replaced = False

    def report(event: Event) -> None:
        nonlocal replaced
        if not replaced:
            replaced = True
            add(store, "a", model=b"new")
            store.remove("b")

    found = store.verify(report=report)
    assert [(model.name.model, model.problems) for model in found] == [("a", ())]
