"""Importance matrices as llama-imatrix writes them: byte for byte, and whole or not at all."""

import hashlib
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.checkpoints import DATA

from gpukit.errors import DiskError, FormatError
from gpukit.formats.gguf_fields import string
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Collection, Sums, read_collection, read_imatrix
from gpukit.formats.imatrix_writer import SCHEMA, write_dat, write_gguf

PEER = DATA / "imatrix"
NAMES = ("tiny-shakespeare", "mixtral-12", "phi3-4k", "tied")
# sha256 of what llama-imatrix --in-file NAME.gguf --output-format dat makes of these files.
DAT = {
    "tiny-shakespeare": "311375001d8cec0614c49b3b4bf6fd36bb459326e9619dabfd9b38da1b58b2c0",
    "mixtral-12": "15977f603e41b495046ecbd1b8aaf0b3c36bf91b7db2ddd72ccb715949b99daf",
}


def stats(path: Path) -> dict[str, np.ndarray]:
    with GGUFFile(path) as file:
        return {
            name.removesuffix(".stats"): file.read(info).view("<f4")
            for name, info in file.tensors.items()
            if name.endswith(".stats")
        }


def small() -> Collection:
    squares = np.arange(12, dtype=np.float32).reshape(3, 4)
    dense = Sums(squares[:1], np.array([7], np.int64), -squares[:1])
    experts = Sums(squares, np.array([3, 0, 9], np.int64), None)
    return Collection({"blk.1.b.weight": experts, "blk.0.a.weight": dense}, ("a", "b"), 2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_llama_imatrix(name: str, tmp_path: Path) -> None:
    peer = PEER / f"{name}.gguf"
    write_gguf(tmp_path / "x.gguf", read_collection(peer), stats(peer))
    assert (tmp_path / "x.gguf").read_bytes() == peer.read_bytes()


@pytest.mark.parametrize("name", DAT)
def test_the_bytes_of_the_older_form(name: str, tmp_path: Path) -> None:
    write_dat(tmp_path / "x.dat", read_collection(PEER / f"{name}.gguf"))
    assert hashlib.sha256((tmp_path / "x.dat").read_bytes()).hexdigest() == DAT[name]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", small(), more=[string("more.key", "value")])
    found = read_collection(tmp_path / "x.gguf")
    assert (found.datasets, found.chunks, found.chunk_size) == (("a", "b"), 2, 5)
    assert list(found.entries) == ["blk.0.a.weight", "blk.1.b.weight"]
    for name, sums in small().entries.items():
        other = found.entries[name]
        np.testing.assert_array_equal(other.squares, sums.squares)
        np.testing.assert_array_equal(other.counts, sums.counts)
        assert (other.sums is None) == (sums.sums is None)
    np.testing.assert_array_equal(found.entries["blk.0.a.weight"].sums, [[0, -1, -2, -3]])
    bare = read_collection(tmp_path / "x.gguf", squares_only=True)
    assert bare.entries["blk.0.a.weight"].sums is None
    write_dat(tmp_path / "x.dat", small())
    old = read_collection(tmp_path / "x.dat")
    assert (old.datasets, old.chunks, old.chunk_size) == (("b",), 2, 0)
    # Two calls of 5 rows each, rounded up; what nothing came to counts 1.
    assert {name: sums.counts.tolist() for name, sums in old.entries.items()} == {
        "blk.0.a.weight": [2], "blk.1.b.weight": [2],
    }  # fmt: skip
    means = [read_imatrix(tmp_path / file).entries for file in ("x.gguf", "x.dat")]
    for name in small().entries:
        np.testing.assert_allclose(means[0][name], means[1][name], rtol=2**-22)
    assert means[0]["blk.1.b.weight"].tolist()[4:8] == [1, 1, 1, 1]


def test_weights_that_nothing_came_to_are_no_entries_of_the_older_form(tmp_path: Path) -> None:
    nothing = Sums(np.zeros((2, 4), np.float32), np.zeros(2, np.int64))
    found = replace(small(), entries={**small().entries, "blk.2.c.weight": nothing})
    write_dat(tmp_path / "x.dat", found)
    write_gguf(tmp_path / "x.gguf", found)
    assert "blk.2.c.weight" not in read_collection(tmp_path / "x.dat").entries
    assert read_imatrix(tmp_path / "x.gguf").entries["blk.2.c.weight"].tolist() == [1] * 8


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    values = {name: np.arange(12, dtype=np.float32) for name in small().entries}
    write_gguf(tmp_path / "x.gguf", small(), values)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found["blk.1.b.weight.in_sum2"].shape.tolist() == [4, 3]
    assert found["blk.1.b.weight.counts"].shape.tolist() == [1, 3]
    assert found["blk.0.a.weight.in_sum"].data.tolist() == [0, -1, -2, -3]
    assert found["blk.0.a.weight.stats"].data.tolist() == list(range(12))
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.stats_schema"].contents() == list(SCHEMA)


@pytest.mark.parametrize("write", [write_gguf, write_dat])
def test_whole_or_not_at_all(write: object, small_disk: Path) -> None:
    large = Sums(np.ones((1, 200_000), np.float32), np.ones(1, np.int64))
    path = small_disk / "x"
    path.write_bytes(b"before")
    with pytest.raises(DiskError, match="make room or write to another disk"):
        write(path, replace(small(), entries={"blk.0.a.weight": large}))  # type: ignore[operator]
    assert [p.name for p in small_disk.iterdir()] == ["x"]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"counts": [[np.nan], [1]]}, "a count of nan"),
        ({"counts": [[-1], [1]]}, r"a count of -1\.0"),
        ({"counts": [[np.inf], [1]]}, "a count of inf"),
        ({"in_sum": [[1, 2, 3]]}, r"\.in_sum has 3 values \(F32\), \.in_sum2 8 \(F32\)"),
        ({"chunk_size": 0}, r"imatrix\.chunk_size is 0; a number of tokens is wanted"),
    ],
)
def test_sums_that_cannot_be(change: dict[str, object], what: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", change.pop("chunk_size", 32))  # type: ignore[arg-type]
    tensors = {"in_sum2": np.ones((2, 4)), "counts": [[1], [1]], **change}
    for name, values in tensors.items():
        writer.add_tensor(f"blk.0.a.weight.{name}", np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=what):
        read_collection(tmp_path / "x.gguf")
