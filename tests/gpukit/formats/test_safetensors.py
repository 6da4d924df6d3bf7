"""safetensors files: read as the reference does, contradictions refused."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gpukit.errors import SafetensorsError
from gpukit.formats.safetensors import SafetensorsFile


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


A = entry("F32", [2], 0, 8)
GOOD = packed({"a": A}, bytes(8))
DEEP = b"[" * 200_000

MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "length cut": (GOOD[:7], "7 bytes"),
    "header cut": (GOOD[:20], "truncated?"),
    "length beyond the file": (packed({"a": A}, bytes(8), 1000), "truncated?"),
    "length beyond all": (packed({"a": A}, bytes(8), (1 << 64) - 1), "are possible"),
    "length 0": (packed(b"", bytes(8)), "no JSON"),
    "no JSON": (packed(b"{'a': 1}"), "no JSON"),
    "no UTF-8": (packed(b'{"\xff": 1}'), "no JSON"),
    "deep": (packed(DEEP), "no JSON"),
    "long number": (packed(b'{"a":' + b"9" * 5000 + b"}"), "no JSON"),
    "list": (packed([1]), "no JSON object"),
    "tensor twice": (packed(b'{"a": 1, "b": 2, "a": 3}'), "'a' stands twice"),
    "key twice in an entry": (packed(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "stands twice"),
    "metadata list": (packed({"__metadata__": ["a"]}), "__metadata__"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry no object": (packed({"a": 5}), "a: an entry needs"),
    "entry without dtype": (packed({"a": {"shape": [], "data_offsets": [0, 0]}}), "needs dtype"),
    "entry with more": (packed({"a": {**A, "more": 1}}, bytes(8)), "needs dtype"),
    "unknown dtype": (packed({"a": entry("F33", [2], 0, 8)}, bytes(8)), "unknown dtype 'F33'"),
    "dtype no text": (packed({"a": {**A, "dtype": [1]}}, bytes(8)), "unknown dtype"),
    "negative dimension": (packed({"a": entry("F32", [-2], 0, 8)}, bytes(8)), "shape [-2]"),
    "float dimension": (packed({"a": entry("F32", [2.0], 0, 8)}, bytes(8)), "shape [2.0]"),
    "boolean dimension": (packed({"a": entry("U8", [True], 0, 1)}, bytes(1)), "shape [True]"),
    "huge dimension": (packed({"a": entry("F32", [1 << 63], 0, 8)}, bytes(8)), "natural"),
    "shape no list": (packed({"a": {**A, "shape": 2}}, bytes(8)), "shape 2"),
    "65 dimensions": (packed({"a": entry("U8", [1] * 65, 0, 1)}, bytes(1)), "65 dimensions"),
    "endless product": (
        packed({"a": entry("U8", [(1 << 62)] * 300_000, 0, 1)}, bytes(1)),
        "300000 dimensions",
    ),
    "three offsets": (packed({"a": {**A, "data_offsets": [0, 4, 8]}}, bytes(8)), "no pair"),
    "negative offset": (packed({"a": entry("F32", [2], -8, 0)}, bytes(8)), "no pair"),
    "offsets the wrong way": (packed({"a": entry("F32", [2], 8, 0)}, bytes(8)), "span -8"),
    "shape lies": (packed({"a": entry("F32", [3], 0, 8)}, bytes(8)), "takes 12 bytes"),
    "shape overflows": (
        packed({"a": entry("F32", [1 << 32, 1 << 32], 0, 0)}),
        "takes 73786976294838206464 bytes",
    ),
    "half a byte": (packed({"a": entry("F4", [3], 0, 2)}, bytes(2)), "takes 2 bytes"),
    "data cut": (GOOD[:-1], "truncated: a needs"),
    "range behind the end": (packed({"a": entry("F32", [2], 64, 72)}, bytes(8)), "truncated"),
    "range at 2^62": (
        packed({"a": entry("F32", [2], 1 << 62, (1 << 62) + 8)}, bytes(8)),
        "truncated",
    ),
    "overlap": (packed({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)), "inside another"),
    "same range": (packed({"a": A, "b": A}, bytes(8)), "inside another"),
    "hole": (packed({"a": A, "b": entry("F32", [1], 12, 16)}, bytes(16)), "a hole from"),
    "hole before": (packed({"a": entry("F32", [1], 4, 8)}, bytes(8)), "a hole from"),
    "bytes behind": (GOOD + b"x", "1 bytes follow"),
    "bytes of no tensor": (packed({}, b"xy"), "2 bytes follow"),
    "line breaks in a name": (packed({"a\n\x1b[2J": 1}), r"a\n\x1b[2J: an entry"),
    "line breaks in a range": (packed({"a\nb": A}, bytes(4)), r"truncated: a\nb needs"),
    "surrogate in a name": (packed(b'{"\\ud800": 1}'), r"\ud800: an entry"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(case: str, tmp_path: Path) -> None:
    data, word = MALFORMED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorsError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert word in message
    assert "\n" not in message
    assert len(message.encode()) < len(str(path)) + 500


def test_many_names_with_one_twice_end_soon(tmp_path: Path) -> None:
    names = [f'"{n}": 1' for n in range(100_000)]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(packed(("{" + ", ".join([*names, names[-1]]) + "}").encode()))
    with pytest.raises(SafetensorsError, match="'99999' stands twice"):
        SafetensorsFile(path)


def test_refused_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(GOOD + b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(SafetensorsError):
            SafetensorsFile(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="no such file"):
        SafetensorsFile(tmp_path / "missing")
    with pytest.raises(SafetensorsError, match="Is a directory"):
        SafetensorsFile(tmp_path)


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "z": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.int64),
    "half": np.ones((2, 1, 2), dtype=np.float16),
    "none": np.zeros((0, 4), dtype=np.uint8),
    "scalar": np.array(7, dtype=np.int32),
}


def test_what_the_reference_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    with SafetensorsFile(path) as file, safe_open(path, "np") as reference:
        assert file.metadata == reference.metadata() == {"format": "pt"}
        assert sorted(file.tensors) == sorted(reference.keys())
        for name, tensor in file.tensors.items():
            wanted = reference.get_tensor(name)
            assert tensor.shape == wanted.shape
            assert tensor.dtype == reference.get_slice(name).get_dtype()
            buffer = bytearray(tensor.nbytes)
            file.read_into(tensor, memoryview(buffer))
            assert bytes(buffer) == wanted.tobytes()


def test_parts_and_what_lies_outside(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(ARRAYS, path)
    with SafetensorsFile(path) as file:
        z = file.tensors["z"]
        part = bytearray(8)
        file.read_into(z, memoryview(part), 16)
        assert bytes(part) == ARRAYS["z"].tobytes()[16:]
        for start in (-1, 17):
            with pytest.raises(ValueError, match="of 24"):
                file.read_into(z, memoryview(part), start)
        os.truncate(path, file.tensors["z"].offset + 20)
        with pytest.raises(SafetensorsError, match="4 bytes short; it has changed"):
            file.read_into(z, memoryview(part), 16)
    file.close()
    with pytest.raises(SafetensorsError, match="z: "):
        file.read_into(z, memoryview(part))


def test_an_empty_tensor_may_stand_anywhere_between_others(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = {"a": A, "n": entry("F32", [0], 8, 8), "b": entry("F4", [4], 8, 10)}
    path.write_bytes(packed(header, bytes(10)))
    with SafetensorsFile(path) as file:
        assert [t.nbytes for t in file.tensors.values()] == [8, 0, 2]
