"""Pushing to the Hugging Face hub, against one on this machine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import gpukit
from support.hub_uploads import COMMIT, Uploads, serve
from support.stores import add

from gpukit import Store


@pytest.fixture
def hub() -> Iterator[Uploads]:
    with serve() as it:
        yield it


def push(hub: Uploads, tmp_path: Path, *words: object, token: str = "hf_secret") -> tuple[int, str]:
    done = gpukit(
        "push", *words, HOME=str(tmp_path), GPUKIT_MODELS=str(tmp_path / "models"),
        HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=hub.url, HF_TOKEN=token, HF_HUB_DISABLE_XET="1",
        NO_PROXY="127.0.0.1,localhost",
    )  # fmt: skip
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def test_a_file_with_a_card(hub: Uploads, tmp_path: Path, spoken: Path) -> None:
    file = tmp_path / "tiny.gguf"
    shutil.copy(spoken, file)
    code, said = push(hub, tmp_path, file, "hf.co/ann/tiny-gguf", "--private", "--json")
    assert code == 0, said
    size = file.stat().st_size
    assert json.loads(said) == {
        "name": "hf.co/ann/tiny-gguf", "digest": COMMIT, "size": size, "moved": size,
        "mounted": 0, "url": f"{hub.url}/ann/tiny-gguf",
    }  # fmt: skip
    there = hub.repos["ann/tiny-gguf"]
    assert there["tiny.gguf"] == file.read_bytes()
    assert hub.private["ann/tiny-gguf"]
    card = there["README.md"].decode()
    assert card.startswith("---\n")
    assert "library_name: gguf\ntags:\n- gpukit\n---\n\n# tiny-gguf\n" in card
    assert f"| `tiny.gguf` | F16 | {size} |" in card
    assert "gpukit run hf.co/ann/tiny-gguf" in card
    there["README.md"] = b"mine"
    store = Store(tmp_path / "models")
    add(store, "hf.co/ann/tiny-gguf:f16", model=file.read_bytes())
    assert push(hub, tmp_path, "hf.co/ann/tiny-gguf:f16")[0] == 0
    assert there["tiny-gguf-f16.gguf"] == file.read_bytes()
    assert there["README.md"] == b"mine"


def test_who_may_not_write_is_told(hub: Uploads, tmp_path: Path, spoken: Path) -> None:
    code, said = push(hub, tmp_path, spoken, "hf.co/ann/tiny", token="hf_other")
    assert code == 1
    assert "set HF_TOKEN to a token that may (hf auth login)" in said.splitlines()[-1]
    assert not hub.repos
