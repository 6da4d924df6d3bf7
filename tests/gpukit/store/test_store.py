"""The store on disk: what is written where, what is removed when, and what reads back."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stores import CONFIG_FILE, ORPHAN, PARTIAL, add, file_names, files

from gpukit.errors import ArgumentError, DiskError, StoreError
from gpukit.events import Event, Warned
from gpukit.store import ModelName, Store, change, copy, default_root, remove, tidy
from gpukit.store.blobs import copy_in, digest_of
from gpukit.store.manifest import LAYER_PREFIX, Manifest


@pytest.mark.parametrize(
    ("gpukit", "ollama", "expected"),
    [("/a", "/b", "/a"), (None, " '/b' ", "/b"), ("", "/b", "/b"), (None, None, "~/.ollama/models"),
     ("~/m", None, "~/m")],
)  # fmt: skip
def test_root(
    monkeypatch: pytest.MonkeyPatch, gpukit: str | None, ollama: str | None, expected: str
) -> None:
    for variable, value in (("GPUKIT_MODELS", gpukit), ("OLLAMA_MODELS", ollama)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
    assert default_root() == Path(expected).expanduser()


@pytest.mark.parametrize("variable", ["GPUKIT_MODELS", "OLLAMA_MODELS"])
def test_a_root_that_is_no_folder(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUKIT_MODELS", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "notes"))
    assert default_root() == tmp_path / "notes"  # not there yet
    (tmp_path / "notes").touch()
    with pytest.raises(StoreError, match=rf"{variable}: .*/notes is no folder; set it to one"):
        Store().names()


def test_layout_and_modes(store: Store) -> None:
    old = os.umask(0o022)
    try:
        manifest = add(store, "Team/m:1b", "MIT")
    finally:
        os.umask(old)
    path = store.root / "manifests/registry.ollama.ai/Team/m/1b"
    assert path.read_bytes() == manifest.encode()
    blob = store.blobs / f"sha256-{manifest.layers[0].digest[7:]}"
    assert blob.read_bytes() == b"MIT"
    assert files(store) == file_names("MIT") | CONFIG_FILE
    for folder in (store.blobs, store.manifests, path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    for file in (blob, path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [each.name for each in (store.root / ".gpukit").iterdir()] == ["lock"]


def test_list_is_newest_first_and_counts_all_layers(store: Store) -> None:
    for i, name in enumerate(("a", "b", "c")):
        add(store, name, f"licence {name}")
        os.utime(store.manifest_path(store.find(name)), (i * 100, i * 100))
    models = store.models()
    assert [model.name.display for model in models] == ["c:latest", "b:latest", "a:latest"]
    assert models[0].size == len("licence c") + 24
    assert models[0].modified.timestamp() == 200
    assert models[0].digest == digest_of(store.manifest_bytes(models[0].name))[7:]
    assert len(models[0].id) == 12
    assert Store(store.root / "nowhere").models() == []


def test_foreign_files_are_no_models(store: Store) -> None:
    add(store, "a")
    host = store.manifests / "registry.ollama.ai"
    (store.manifests / "stray").write_text("x")
    (host / "library" / "stray").write_text("x")
    (host / "library" / "a" / ".hidden").write_text("x")
    (host / "library" / "a" / "deep").mkdir()
    (host / "library" / "a" / "deep" / "er").write_text("x")
    assert [name.display for name in store.names()] == ["a:latest"]


def test_corrupt_manifest_is_reported_and_can_be_removed(store: Store) -> None:
    add(store, "good", "MIT")
    manifest = add(store, "bad", "GPL")
    path = store.manifest_path(store.find("bad"))
    path.write_bytes(manifest.encode()[:-50])
    events: list[Event] = []
    assert [model.name.display for model in store.models(events.append)] == ["good:latest"]
    (event,) = events
    assert isinstance(event, Warned)
    assert "model 'bad:latest': the manifest is corrupt" in event.text
    with pytest.raises(StoreError, match="corrupt"):
        store.resolve("bad")
    # What it still names is in use: removing the other model leaves the shared blob alone.
    remove(store, "good")
    assert files(store) >= CONFIG_FILE
    remove(store, "bad")
    assert files(store) <= file_names("GPL")
    assert list(store.manifests.iterdir()) == []


def test_remove_keeps_what_others_use(store: Store) -> None:
    add(store, "a", "MIT", "A only")
    add(store, "b", "MIT")
    (store.blobs / ORPHAN).write_text("not ours")
    (store.blobs / PARTIAL).write_text("a download")
    assert remove(store, "A").display == "a:latest"
    assert files(store) == file_names("MIT") | CONFIG_FILE | {ORPHAN, PARTIAL}
    with pytest.raises(StoreError, match="model 'a' not found"):
        remove(store, "a")
    remove(store, "b")
    assert files(store) == {ORPHAN, PARTIAL}
    assert list(store.manifests.iterdir()) == []


def test_replacing_a_model_removes_its_old_blobs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a", "one")
    add(store, "a", "two")
    assert files(store) == file_names("two") | CONFIG_FILE
    monkeypatch.setenv("OLLAMA_NOPRUNE", "1")
    add(store, "a", "three")
    assert files(store) == file_names("two", "three") | CONFIG_FILE


def test_copy(store: Store) -> None:
    add(store, "a", "MIT")
    add(store, "b", "GPL")
    assert [name.display for name in copy(store, "a", "New/C:x")] == ["a:latest", "New/C:x"]
    assert store.manifest_bytes(store.find("new/c:X")) == store.manifest_bytes(store.find("a"))
    for same in ("a", "A:Latest"):  # who removes that has nothing left
        with pytest.raises(ArgumentError, match=f"'a' and '{same}' are one model, a:latest"):
            copy(store, "a", same)
    copy(store, "a", "b")
    assert files(store) == file_names("MIT") | CONFIG_FILE
    with pytest.raises(StoreError, match="model 'nope' not found"):
        copy(store, "nope", "x")
    for pair in (("a", "../x"), ("../x", "a")):
        with pytest.raises(ArgumentError, match="invalid model name"):
            copy(store, *pair)


def test_an_existing_spelling_is_kept(store: Store) -> None:
    add(store, "Llama", "one")
    add(store, "lLAMA", "two")
    assert [name.display for name in store.names()] == ["Llama:latest"]
    assert files(store) == file_names("two") | CONFIG_FILE


def test_an_error_undoes_the_change(store: Store) -> None:
    add(store, "a", "MIT")
    before = files(store)
    with pytest.raises(RuntimeError), change(store) as changes:  # noqa: PT012
        changes.add_bytes(b"new", LAYER_PREFIX + "license")
        changes.add_bytes(b"MIT", LAYER_PREFIX + "license")
        changes.temporary().write_text("unfinished")
        raise RuntimeError
    assert files(store) == before
    assert [each.name for each in (store.root / ".gpukit").iterdir()] == ["lock"]


def test_a_damaged_blob_is_replaced(store: Store) -> None:
    manifest = add(store, "a", "MIT")
    blob = store.blobs / f"sha256-{manifest.layers[0].digest[7:]}"
    blob.write_text("M")
    add(store, "b", "MIT")
    assert blob.read_text() == "MIT"


def test_a_used_blob_is_touched(store: Store) -> None:
    manifest = add(store, "a", "MIT")
    blob = store.blobs / f"sha256-{manifest.layers[0].digest[7:]}"
    os.utime(blob, (0, 0))
    add(store, "b", "MIT")
    assert blob.stat().st_mtime > 0


def test_two_changes_at_once_share_a_blob(store: Store) -> None:
    """One fails after the other has decided to use the blob that it added."""
    with change(store) as second:
        with pytest.raises(RuntimeError), change(store) as first:  # noqa: PT012
            first.add_bytes(b"shared", LAYER_PREFIX + "license")
            layer = second.add_bytes(b"shared", LAYER_PREFIX + "license")
            raise RuntimeError
        assert files(store) == file_names("shared")
        second.publish(ModelName.parse("b"), Manifest(layer, (layer,)))
    assert files(store) == file_names("shared")
    tidy(store)
    assert sorted(each.name for each in (store.root / ".gpukit").iterdir()) == ["lock"]


def test_a_shared_blob_goes_when_both_fail(store: Store) -> None:
    with pytest.raises(RuntimeError), change(store) as second:  # noqa: PT012
        with pytest.raises(RuntimeError), change(store) as first:  # noqa: PT012
            first.add_bytes(b"shared", LAYER_PREFIX + "license")
            second.add_bytes(b"shared", LAYER_PREFIX + "license")
            raise RuntimeError
        raise RuntimeError
    tidy(store)
    assert files(store) == set()
    assert [each.name for each in (store.root / ".gpukit").iterdir()] == ["lock"]


def test_removing_a_model_that_a_change_builds_on(store: Store) -> None:
    base = add(store, "base", "MIT")
    with change(store) as changes:
        for layer in (*base.layers, base.config):
            assert layer is not None
            changes.keep(layer, store.find("base"))
        remove(store, "base")
        changes.publish(ModelName.parse("child"), base)
    assert files(store) == file_names("MIT") | CONFIG_FILE
    remove(store, "child")
    assert files(store) == set()


def test_many_threads(store: Store) -> None:
    errors = []

    def work(i: int) -> None:
        try:
            for round_ in range(4):
                add(store, f"m{i}", "shared", f"{i} {round_}")
            if i % 2:
                remove(store, f"m{i}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    tidy(store)
    assert [name.model for name in store.names()] == ["m0", "m2", "m4"]
    assert files(store) == file_names("shared", "0 3", "2 3", "4 3") | CONFIG_FILE


def test_copy_in(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 9
    (tmp_path / "a").write_bytes(data)
    seen: list[int] = []
    assert copy_in(tmp_path / "a", tmp_path / "b", seen.append) == (digest_of(data), len(data))
    assert (tmp_path / "b").read_bytes() == data
    assert sum(seen) == len(data)
    with pytest.raises(FileExistsError):
        copy_in(tmp_path / "a", tmp_path / "b")


def test_a_bad_digest_touches_nothing(store: Store) -> None:
    add(store, "m")
    with pytest.raises(ArgumentError, match="invalid digest"), change(store) as changes:
        changes.add_file(changes.temporary(), "sha256:../../x", 1, "t")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach; pytest's own are closed to all but us."""
    folder = Path(tempfile.mkdtemp(prefix="gpukit-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


NOBODY = """
import os, sys
from pathlib import Path
from gpukit.store import Store, check_models, collect, copy, remove, tidy
from gpukit.errors import DiskError
os.setgid(65534)
os.setuid(65534)
store = Store(Path(sys.argv[1]))
tidy(store)
assert [model.name.display for model in store.models()] == ["m:latest"]
assert store.resolve("m").gguf.read_bytes() == b"GGUF"
assert [model.problems for model in check_models(store, store.names())] == [()]
for action in (
    lambda: copy(store, "m", "n"), lambda: remove(store, "m"), lambda: collect(store)
):
    try:
        action()
    except DiskError as error:
        assert "ermission denied" in str(error) and "GPUKIT_MODELS" in str(error), error
    else:
        sys.exit("no error")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_store_that_may_only_be_read(open_folder: Path) -> None:
    store = Store(open_folder / "models")
    add(store, "m", model=b"GGUF")
    leave_dead_job(store)
    root = Path(__file__).resolve().parents[3]
    subprocess.run(
        [sys.executable, "-c", NOBODY, str(store.root)],
        check=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}"},
    )
    assert [name.display for name in store.names()] == ["m:latest"]


def leave_dead_job(store: Store) -> Path:
    folder = store.root / ".gpukit" / "1-dead"
    folder.mkdir()
    (folder / "journal").write_text(f"owns sha256:{'0' * 64}\nuses x\nowns sha256:../../m\nowns sh")
    (folder / "half").write_text("x")
    (folder / "tmp").mkdir()
    (folder / "tmp" / "deep").write_text("x")
    return folder


def test_what_a_killed_job_left_goes(store: Store) -> None:
    add(store, "m", "MIT")
    (store.blobs / ORPHAN).write_text("of the dead job")
    (store.blobs / PARTIAL).write_text("a download")
    leave_dead_job(store)
    (store.root / ".gpukit" / "no-journal").mkdir()
    (store.root / ".gpukit" / "stray").write_text("x")
    tidy(store)
    assert files(store) == file_names("MIT") | CONFIG_FILE | {PARTIAL}
    assert [each.name for each in (store.root / ".gpukit").iterdir()] == ["lock"]


def test_a_file_in_the_place_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("x")
    store = Store(tmp_path / "models")
    assert store.models() == []
    with pytest.raises(DiskError, match="models"):
        add(store, "m")
