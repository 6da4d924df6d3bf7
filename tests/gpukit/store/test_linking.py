"""Files that come into the store as links, where blocks cannot be shared."""

import os
from pathlib import Path

import pytest

from gpukit import Modelfile, Store
from gpukit.formats.gguf_fields import TensorSpec, string
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.store import blobs


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    spec = TensorSpec("token_embd.weight", (32, 400), "F16")
    with GGUFWriter(path, [string("general.architecture", "llama")], [spec]) as writer:
        writer.write(0, bytes(range(256)) * 100)
    path.chmod(0o640)
    return path


def test_a_link_is_asked_for(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_share_blocks", lambda reader, writer: False)
    store = Store(tmp_path / "models")
    named = tmp_path / "named.gguf"
    named.symlink_to(weights)
    store.create("copied", Modelfile(source=str(weights)))
    assert weights.stat().st_nlink == 1
    store.remove("copied")
    store.create("linked", Modelfile(source=str(named)), link=True)
    blob = store.resolve("linked").gguf
    assert blob.samefile(weights)
    assert weights.stat().st_mode & 0o777 == 0o640
    assert [model.problems for model in store.verify()] == [()]
    with weights.open("rb+") as file:
        file.write(b"gguf")
    assert "hashes to" in store.verify("linked")[0].problems[0]
    store.remove("linked")
    assert weights.exists()
    assert not blob.exists()


@pytest.mark.parametrize("error", [OSError(18, "Invalid cross-device link"), PermissionError(1)])
def test_without_a_link_it_is_a_copy(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*_words: object) -> None:
        raise error

    monkeypatch.setattr(blobs, "_share_blocks", lambda reader, writer: False)
    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path / "models")
    store.create("copied", Modelfile(source=str(weights)), link=True)
    assert store.resolve("copied").gguf.read_bytes() == weights.read_bytes()
    assert weights.stat().st_nlink == 1


def test_shared_blocks_are_better_than_a_link(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On btrfs and xfs: a copy that takes no room, and that no change of the file changes."""

    def share(reader: int, writer: int) -> bool:
        size = os.fstat(reader).st_size
        os.pwrite(writer, os.pread(reader, size, 0), 0)
        return True

    monkeypatch.setattr(blobs, "_share_blocks", share)
    store = Store(tmp_path / "models")
    store.create("shared", Modelfile(source=str(weights)), link=True)
    assert weights.stat().st_nlink == 1
    assert [model.problems for model in store.verify()] == [()]
