"""Importance matrices: both formats, against what llama-quantize makes of them, and bad ones."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from gpukit.errors import FormatError
from gpukit.formats.imatrix import read_imatrix

SUMS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def write_gguf(path: Path, counts: list[float], drop: str = "", **change: object) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    for key, add in {
        "imatrix.datasets": lambda key: writer.add_array(key, ["wiki.txt"]),
        "imatrix.chunk_count": lambda key: writer.add_uint32(key, 7),
        "imatrix.chunk_size": lambda key: writer.add_uint32(key, 512),
    }.items():
        if key != drop:
            add(key)
    column = np.array(counts, np.float32).reshape(-1, 1)
    tensors = {"blk.0.a.weight.in_sum2": SUMS, "blk.0.a.weight.counts": column, **change}
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dat(*entries: tuple[str, int, list[float]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + tail


def test_sums_over_counts_and_one_for_experts_that_nothing_came_to(tmp_path: Path) -> None:
    found = read_imatrix(write_gguf(tmp_path / "x.gguf", [4, 0]))
    assert found.entries.keys() == {"blk.0.a.weight"}
    assert found.entries["blk.0.a.weight"].tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert (found.dataset, found.chunks) == ("wiki.txt", 7)


def test_one_count_for_all(tmp_path: Path) -> None:
    found = read_imatrix(write_gguf(tmp_path / "x.gguf", [2]))
    assert found.entries["blk.0.a.weight"].tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_the_older_format(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    tail = struct.pack("<ii", 9, 8) + b"wiki.txt"
    path.write_bytes(dat(("a", 4, [1, 2]), ("b", 0, [3]), tail=tail))
    found = read_imatrix(path)
    assert {name: values.tolist() for name, values in found.entries.items()} == {
        "a": [0.25, 0.5],
        "b": [3],
    }
    assert (found.dataset, found.chunks) == ("wiki.txt", 9)
    path.write_bytes(dat(("a", 4, [1, 2])))
    assert read_imatrix(path).chunks == 0


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes|4 bytes at byte 0"),
        (struct.pack("<i", 1 << 30), "entries in 4 bytes"),
        (struct.pack("<i", 0), "0 entries"),
        (dat(("a", 4, [1, 2]))[:-1], "a: values: 8 bytes at byte 17, 7 are left"),
        (dat(("a", 4, [])), "a: values: 0 of them"),
        (dat(("a", 1, [1]), ("a", 1, [1])), "a stands twice"),
        (dat(("a", 4, [1, float("nan")])), "a: value 1 of 2 is nan"),
        (struct.pack("<ii", 1, 1 << 20) + bytes(100), "1048576 bytes; 4096 are possible"),
        (struct.pack("<iiB", 1, -1, 0) * 3, "-1 bytes"),
    ],
)
def test_bad_files_of_the_older_format(data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(data)
    with pytest.raises(FormatError, match=what) as caught:
        read_imatrix(tmp_path / "x.dat")
    assert "x.dat" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "counts", "change"),
    [
        (r"it has no imatrix\.chunk_size", [1], {"drop": "imatrix.chunk_size"}),
        (r"8 sums \(F32\) for 3 counts", [1, 2, 3], {}),
        (r"blk\.0\.a\.weight: \.in_sum2 without \.counts", [1], {"blk.0.a.weight.counts": None}),
        ("without entries", [1], {"blk.0.a.weight.in_sum2": None}),
        ("value 0 of 8 is inf", [1], {"blk.0.a.weight.in_sum2": SUMS * np.float32(np.inf)}),
    ],
)
def test_bad_gguf_files(
    what: str, counts: list[float], change: dict[str, object], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "x.gguf", counts, **change)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=what):
        read_imatrix(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_imatrix(tmp_path / "nowhere")
