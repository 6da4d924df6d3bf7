"""Files of torch.save: tensors as torch reads them, everything else refused before it runs."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpukit.errors import PytorchError
from gpukit.formats.pytorch import PytorchFile

TENSORS = {
    "z": torch.arange(12.0).view(3, 4),
    "half": torch.ones(2, dtype=torch.float16),
    "a": torch.arange(5, dtype=torch.bfloat16),
    "double": torch.full((2, 1, 2), 0.1, dtype=torch.float64),
    "fp8": torch.tensor([[1.5, -2.0]]).to(torch.float8_e4m3fn),
    "long": torch.arange(3),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "part": torch.arange(40.0).view(8, 5)[2:6],
    "every-other": torch.arange(10.0)[::2],
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(7.0),
}


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_tensors_as_torch_has_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.bin", OrderedDict(TENSORS))
    with PytorchFile(path) as file:
        assert list(file.tensors) == list(TENSORS)
        for name, tensor in file.tensors.items():
            assert tensor.shape == tuple(TENSORS[name].shape)
            buffer = bytearray(tensor.nbytes)
            file.read_into(tensor, memoryview(buffer))
            assert bytes(buffer) == raw(TENSORS[name]), name
        kinds = [tensor.dtype for tensor in file.tensors.values()][:6]
        assert kinds == ["F32", "F16", "BF16", "F64", "F8_E4M3", "I64"]


def test_parts_and_what_lies_outside(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.bin", TENSORS)
    with PytorchFile(path) as file:
        for name in ("z", "transposed"):
            tensor, whole = file.tensors[name], raw(TENSORS[name])
            for start, length in ((0, 48), (5, 20), (16, 16), (47, 1)):
                part = bytearray(length)
                file.read_into(tensor, memoryview(part), start)
                assert bytes(part) == whole[start : start + length]
        for start in (-1, 45):
            with pytest.raises(ValueError, match="of 48"):
                file.read_into(file.tensors["z"], memoryview(bytearray(4)), start)
        tensor = file.tensors["z"]
        with path.open("ab") as out:
            out.write(b"x")
        with pytest.raises(PytorchError, match=r"z: the file had .* it has changed"):
            file.read_into(tensor, memoryview(bytearray(4)))
    with pytest.raises(PytorchError, match="closed"):
        file.read_into(tensor, memoryview(bytearray(4)))


class Runs:
    """Code that runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code(zipped: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "m.bin"
    torch.save({"a": Runs(mark)}, path, _use_new_zipfile_serialization=zipped)
    words = (
        r"refused: its pickle wants posix\.mkdir" if zipped else r"no zip archive of torch\.save"
    )
    with pytest.raises(PytorchError, match=words) as caught:
        PytorchFile(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert not mark.exists()


def test_a_plain_pickle_that_runs_code(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(pickle.dumps({"a": Runs(tmp_path / "ran")}))
    with pytest.raises(PytorchError, match=r"no zip archive of torch\.save"):
        PytorchFile(path)
    assert not (tmp_path / "ran").exists()


def archive(path: Path, changes: dict[str, bytes | None], how: int = zipfile.ZIP_STORED) -> Path:
    """The archive of one tensor with entries replaced or removed (None)."""
    saved(path, {"a": torch.arange(4.0)})
    with zipfile.ZipFile(path) as old:
        entries = {name.split("/", 1)[1]: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", how) as new:
        for name, content in {**entries, **changes}.items():
            if content is not None:
                new.writestr(f"m/{name}", content)
    return path


def hand_made(code: bytes) -> Callable[[Path], Path]:
    return lambda path: archive(path, {"data.pkl": b"\x80\x02" + code + b"."})


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a module": (lambda p: saved(p, torch.nn.Linear(2, 2)), "wants torch.nn.modules.linear.Linear"),
    "settings": (lambda p: saved(p, argparse.Namespace(a=1)), "wants argparse.Namespace"),
    "a tensor alone": (lambda p: saved(p, torch.ones(2)), "holds a Tensor, not a dictionary"),
    "a number": (lambda p: saved(p, {"a": torch.ones(2), "epoch": 3}), "epoch is a int"),
    "a nested one": (lambda p: saved(p, {"model": {"a": torch.ones(2)}}), "model is a dict"),
    "names of numbers": (lambda p: saved(p, {3: torch.ones(2)}), "'3' is no name"),
    "sparse": (lambda p: saved(p, {"a": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
    "complex": (lambda p: saved(p, {"a": torch.ones(2) * 1j}), "not a plain tensor"),
    "spread out": (lambda p: saved(p, {"a": torch.ones(1).expand(9)}), "take 36 bytes, .* has 4"),
    "allocates": (hand_made(b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR"), "bytearray"),
    "computed name": (hand_made(b"X\x02\0\0\0osX\x06\0\0\0system\x93"), "computed.names"),
    "no pickle": (lambda p: archive(p, {"data.pkl": b"\xff\xff"}), "is no pickle: .*opcode"),
    "half a pickle": (lambda p: archive(p, {"data.pkl": b"\x80\x02}"}), "is no pickle"),
    "no record": (lambda p: archive(p, {"data/0": None}), "malformed: torch cannot load it"),
    "compressed": (lambda p: archive(p, {}, zipfile.ZIP_DEFLATED), "compressed"),
    "no pickle at all": (lambda p: archive(p, {"data.pkl": None}), "0 entries"),
    "empty": (lambda p: (p.write_bytes(b""), p)[1], "no zip archive"),
    "text": (lambda p: (p.write_text("hello"), p)[1], "no zip archive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dictionary_of_tensors(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    path = make(tmp_path / "m.bin")
    with pytest.raises(PytorchError, match=words) as caught:
        PytorchFile(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 400


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PytorchError, match="no such file"):
        PytorchFile(tmp_path / "missing.bin")
    with pytest.raises(PytorchError, match="cannot be read"):
        PytorchFile(tmp_path)
