"""Model folders: every naming of the weights, links, and what contradicts itself."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gpukit.errors import CheckpointError, FormatError, SafetensorsError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.folder import weight_files
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile

INDEX = "model.safetensors.index.json"
DEEP = b"[" * 200_000


def folder(tmp_path: Path, parts: dict[str, dict[str, float]], index: Any = True) -> Path:
    """A checkpoint of scalars; `index` True: one that is right, None: none, else its content."""
    there = tmp_path / "model"
    there.mkdir()
    (there / "config.json").write_text('{"model_type": "llama"}')
    for part, values in parts.items():
        save_file({n: np.array([v], np.float32) for n, v in values.items()}, there / part)
    if index is True:
        index = {"weight_map": {n: part for part, values in parts.items() for n in values}}
    if index is not None:
        (there / INDEX).write_text(json.dumps(index))
    return there


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS: dict[str, dict[str, float]] = {ONE: {"z": 1, "b": 2}, TWO: {"c": 3, "a": 4}}


def values(checkpoint: Checkpoint) -> dict[str, float]:
    found = {}
    for tensor in checkpoint:
        buffer = bytearray(tensor.nbytes)
        checkpoint.read_into(tensor, memoryview(buffer))
        (found[tensor.name],) = struct.unpack("<f", buffer)
    return found


@pytest.mark.parametrize("index", [True, None])
def test_shards_in_llama_cpps_order(index: bool | None, tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS, index)
    with Checkpoint(there) as checkpoint:
        assert list(checkpoint.tensors) == ["b", "z", "a", "c"]
        assert values(checkpoint) == {"b": 2, "z": 1, "a": 4, "c": 3}
        assert checkpoint.config == {"model_type": "llama"}
        assert checkpoint.folder == there
        assert checkpoint.read_json("generation_config.json") is None


def test_a_single_file(tmp_path: Path) -> None:
    there = folder(tmp_path, {"model.safetensors": {"a": 1}}, None)
    save_file({"x": np.zeros(1)}, there / "adapter.safetensors")
    with Checkpoint(there) as checkpoint:
        assert values(checkpoint) == {"a": 1}


NAMES = {
    "model.safetensors": ["model.safetensors"],
    "model.fp16.safetensors": ["model.fp16.safetensors"],
    "consolidated.safetensors pytorch_model.bin": ["consolidated.safetensors"],
    "consolidated.00.pth pytorch_model.bin training_args.bin": ["pytorch_model.bin"],
    "consolidated.00.pth weights.safetensors": ["consolidated.00.pth"],
    "weights.safetensors adapter_model.safetensors x.bin": ["weights.safetensors"],
    "x.bin y.pth training_args.bin optimizer.bin": ["x.bin", "y.pth"],
    "model.safetensors consolidated.safetensors a.safetensors": ["model.safetensors"],
    "model.safetensors.index.json pytorch_model.bin": [],
    "consolidated.safetensors.index.json x.safetensors": [],
}


@pytest.mark.parametrize("names", NAMES)
def test_which_files_hold_the_weights(names: str) -> None:
    found = weight_files(["config.json", "tokenizer.json", *names.split()])
    assert found is not None
    assert found[1] == NAMES[names]


def test_folders_without_weights() -> None:
    assert weight_files(["config.json", "adapter_model.safetensors", "training_args.bin"]) is None


@pytest.mark.parametrize("name", ["consolidated", "weights", "model.fp16"])
def test_other_names_of_safetensors(name: str, tmp_path: Path) -> None:
    there = folder(tmp_path, {f"{name}.safetensors": {"b": 1, "a": 2}}, None)
    with Checkpoint(there) as checkpoint:
        assert values(checkpoint) == {"a": 2, "b": 1}


def test_an_index_of_another_naming(tmp_path: Path) -> None:
    parts = {"consolidated-1.safetensors": {"a": 1.0}, "consolidated-2.safetensors": {"b": 2.0}}
    there = folder(tmp_path, parts, None)
    index = {"weight_map": {"a": "consolidated-1.safetensors", "b": "consolidated-9.safetensors"}}
    (there / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"consolidated-9\.safetensors: missing"):
        Checkpoint(there)


def torch_folder(tmp_path: Path, parts: dict[str, dict[str, float]]) -> Path:
    there = folder(tmp_path, {}, None)
    for part, numbers in parts.items():
        torch.save({n: torch.tensor([float(v)]) for n, v in numbers.items()}, there / part)
    return there


BINS: dict[str, dict[str, float]] = {
    "pytorch_model-00001-of-00002.bin": {"z": 1, "b": 2},
    "pytorch_model-00002-of-00002.bin": {"c": 3, "a": 4},
}


@pytest.mark.parametrize("index", [True, False])
def test_files_of_pytorch_keep_their_order(index: bool, tmp_path: Path) -> None:
    there = torch_folder(tmp_path, BINS)
    if index:
        weight_map = {name: part for part, numbers in BINS.items() for name in numbers}
        path = there / "pytorch_model.bin.index.json"
        path.write_text(json.dumps({"weight_map": weight_map}))
    with Checkpoint(there) as checkpoint:
        assert list(checkpoint.tensors) == ["z", "b", "c", "a"]
        assert values(checkpoint) == {"z": 1, "b": 2, "c": 3, "a": 4}


def test_a_consolidated_pth(tmp_path: Path) -> None:
    there = torch_folder(tmp_path, {"consolidated.00.pth": {"a": 1}, "training_args.bin": {}})
    with Checkpoint(there) as checkpoint:
        assert values(checkpoint) == {"a": 1}


def test_a_tensor_in_two_files_of_pytorch(tmp_path: Path) -> None:
    there = torch_folder(
        tmp_path, {"pytorch_model-1.bin": {"a": 1}, "pytorch_model-2.bin": {"a": 2}}
    )
    with pytest.raises(CheckpointError, match=r"model-2\.bin: a is also in pytorch_model-1\.bin"):
        Checkpoint(there)


def test_files_that_the_index_does_not_name_are_left_alone(tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS)
    save_file({"a": np.zeros(1)}, there / "model-extra.safetensors")
    with Checkpoint(there) as checkpoint:
        assert len(checkpoint.files) == 2
        assert checkpoint.unread == ("model-extra.safetensors",)


def test_a_cache_of_symlinks(tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS)
    blobs = tmp_path / "blobs"
    snapshot = tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(there.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    with Checkpoint(snapshot) as checkpoint:
        assert values(checkpoint) == {"b": 2, "z": 1, "a": 4, "c": 3}
    (blobs / f"{1:064x}").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001.*missing"):
        Checkpoint(snapshot)


LINKED = ["config.json", ONE, "tokenizer.json", "README.md", "additional_chat_templates/a.jinja"]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("place", ["beside", "blobs", "above"])
def test_links_out_of_the_folder(name: str, place: str, tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS, None)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.parent.mkdir()
    there.rename(snapshot)
    path = snapshot / name
    # Also names that only begin like the folder's own, and blobs that are a link themselves.
    target = tmp_path / {"beside": "snapshots/abcd", "blobs": "blobs/0", "above": "x"}[place]
    target.parent.mkdir(exist_ok=True)
    if place == "blobs":
        (tmp_path / "elsewhere").mkdir()
        target.parent.rmdir()
        target.parent.symlink_to(tmp_path / "elsewhere")
    target.write_text("{}")
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    with pytest.raises(CheckpointError, match=r"a link to .*, outside the folder; copy") as caught:
        Checkpoint(snapshot)
    assert str(path) in str(caught.value)


def test_links_within_the_folder_and_to_it(tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS)
    (there / ONE).rename(there / "blob")
    (there / ONE).symlink_to("blob")
    (tmp_path / "link").symlink_to(there)
    with Checkpoint(tmp_path / "link") as checkpoint:
        assert values(checkpoint) == {"b": 2, "z": 1, "a": 4, "c": 3}


def test_a_link_to_itself_and_a_pipe(tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS)
    (there / "README.md").symlink_to("README.md")
    with pytest.raises(CheckpointError, match=r"README\.md: (a link that|cannot be read)"):
        Checkpoint(there)
    (there / "README.md").unlink()
    os.mkfifo(there / "generation_config.json")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: no regular file"):
        Checkpoint(there)


POINTED = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"


@pytest.mark.parametrize("name", [ONE, "tokenizer.json", "tokenizer.model"])
def test_pointers_of_git_lfs_in_a_folder(name: str, tmp_path: Path) -> None:
    there = folder(tmp_path, SHARDS)
    (there / name).write_text(POINTED)
    with pytest.raises(CheckpointError, match=f"{name}: a pointer of Git LFS .*`git lfs pull`"):
        Checkpoint(there)


@pytest.mark.parametrize(
    ("name", "reader"),
    [("a.gguf", GGUFFile), ("a.safetensors", SafetensorsFile), ("a.bin", PytorchFile)],
)
def test_pointers_of_git_lfs_by_themselves(
    name: str, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(POINTED)
    with pytest.raises(FormatError, match=rf"{name}: a pointer of Git LFS"):
        reader(tmp_path / name)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without_weights(there: Path) -> None:
    for path in there.iterdir():
        if path.name != "config.json":
            path.unlink()


Damage = Callable[[Path], object]
FAULTY: dict[str, tuple[Damage, type[Exception], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, "no config.json"),
    "config no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        CheckpointError,
        "config.json: no JSON",
    ),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        CheckpointError,
        "no JSON object",
    ),
    "config no UTF-8": (
        lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'),
        CheckpointError,
        "no JSON",
    ),
    "config deep": (
        lambda f: (f / "config.json").write_bytes(DEEP),
        CheckpointError,
        "no JSON",
    ),
    "config a folder": (
        lambda f: folder_instead(f / "config.json"),
        CheckpointError,
        "cannot be read",
    ),
    "shard missing": (lambda f: (f / TWO).unlink(), CheckpointError, "lists it for 2 tensors"),
    "shard cut": (lambda f: os.truncate(f / TWO, 30), SafetensorsError, "truncated?"),
    "shard a folder": (
        lambda f: folder_instead(f / TWO),
        CheckpointError,
        "missing",
    ),
    "index no JSON": (lambda f: (f / INDEX).write_text("x"), CheckpointError, "no JSON"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), CheckpointError, "no weight_map"),
    "index of numbers": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": 1}}'),
        CheckpointError,
        "no weight_map of file names",
    ),
    "index out of the folder": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}'),
        CheckpointError,
        "no weight_map of file names",
    ),
    "index of nothing": (
        lambda f: (f / INDEX).write_text('{"weight_map": {}}'),
        CheckpointError,
        "no weight_map",
    ),
    "index lists more": (
        lambda f: (f / INDEX).write_text(
            json.dumps({"weight_map": {"z": ONE, "b": ONE, "c": TWO, "a": TWO, "gone\n": TWO}})
        ),
        CheckpointError,
        r"lists 1 tensor that none of its files holds: gone\n",
    ),
    "index lists fewer": (
        lambda f: (f / INDEX).write_text(
            json.dumps({"weight_map": {"z": ONE, "b": ONE, "c": TWO}})
        ),
        CheckpointError,
        "does not list 1 tensor of its files: a",
    ),
    "tensor in two shards": (
        lambda f: save_file({n: np.zeros(1) for n in "bca"}, f / TWO),
        CheckpointError,
        f"{TWO}: b is also in {ONE}",
    ),
    "no weights": (
        without_weights,
        CheckpointError,
        "*.bin, *.pth); found config.json",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_folders_that_contradict_themselves(case: str, tmp_path: Path) -> None:
    damage, kind, word = FAULTY[case]
    there = folder(tmp_path, SHARDS)
    damage(there)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind) as caught:
        Checkpoint(there)
    assert word in str(caught.value)
    assert str(there) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint(tmp_path / "missing")


def test_closing_twice(tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder(tmp_path, SHARDS))
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(SafetensorsError):
        values(checkpoint)
