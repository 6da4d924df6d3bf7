"""Writing GGUF: the gguf package's bytes, whole files or none, whatever order the data comes in."""

import hashlib
import itertools
import os
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gguf_contents import FIELDS, TENSORS, V, contents, written

from gpukit.formats.gguf_fields import (
    Field,
    TensorSpec,
    type_sizes,
    u32,
)
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter, plan_layout


def theirs(
    path: Path,
    fields: list[Field],
    tensors: list[TensorSpec],
    data: list[bytes],
    alignment: int | None = None,
) -> bytes:
    """The file that the gguf package writes."""
    gguf = pytest.importorskip("gguf")
    # The package adds the architecture itself.
    writer = gguf.GGUFWriter(path, fields[0].value)
    for field in fields[1:]:
        sub = None if field.item is None else gguf.GGUFValueType(int(field.item))
        writer.add_key_value(field.key, field.value, gguf.GGUFValueType(int(field.type)), sub)
    if alignment:
        writer.add_custom_alignment(alignment)
    for spec, content in zip(tensors, data, strict=True):
        shape = [*spec.ne[:0:-1], spec.row_bytes]
        raw = np.frombuffer(content, dtype=np.uint8).reshape(shape)
        kind = gguf.GGMLQuantizationType(type_sizes()[spec.type].id)
        writer.add_tensor(spec.name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_bytes_of_the_gguf_package(tmp_path: Path) -> None:
    ours = tmp_path / "ours.gguf"
    written(ours)
    reference = theirs(tmp_path / "theirs.gguf", FIELDS, TENSORS, contents())
    layout = plan_layout(FIELDS, TENSORS)
    assert layout.header == reference[: len(layout.header)]
    assert layout.size == len(reference)
    assert ours.read_bytes() == reference


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_bytes_at_other_alignments(alignment: int, tmp_path: Path) -> None:
    ours = tmp_path / "ours.gguf"
    fields = [*FIELDS[:2], u32("general.alignment", alignment)]
    with GGUFWriter(ours, fields, TENSORS, alignment=alignment, digest=True) as writer:
        for index, data in enumerate(contents()):
            writer.write(index, data)
    reference = theirs(tmp_path / "theirs.gguf", FIELDS[:2], TENSORS, contents(), alignment)
    assert ours.read_bytes() == reference
    assert writer.digest == hashlib.sha256(reference).hexdigest()
    with GGUFFile(ours) as file:
        assert file.alignment == alignment


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    written(path)
    reader = gguf.GGUFReader(path)
    for field in FIELDS:
        value = reader.fields[field.key].contents()
        assert value == (pytest.approx(field.value) if field.type is V.FLOAT32 else field.value)
    assert len(reader.tensors) == len(TENSORS)
    for tensor, spec, data in zip(reader.tensors, TENSORS, contents(), strict=True):
        assert tensor.name == spec.name
        assert tuple(tensor.shape.tolist()) == spec.ne
        assert tensor.tensor_type.name == spec.type
        assert tensor.data.tobytes() == data


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = written(path)
    assert writer.size == path.stat().st_size
    with GGUFFile(path) as file:
        assert list(file.fields) == [f.key for f in FIELDS]
        for field in FIELDS:
            got = file.fields[field.key]
            assert (got.type, got.item) == (field.type, field.item)
            exact = field.type is not V.FLOAT32
            assert got.value == (field.value if exact else pytest.approx(field.value))
        assert [t.name for t in file.tensors.values()] == [t.name for t in TENSORS]
        for info, spec, data in zip(file.tensors.values(), TENSORS, contents(), strict=True):
            assert (info.ne, info.type, info.nbytes) == (spec.ne, spec.type, len(data))
            assert file.read(info).tobytes() == data
            assert info.offset % 32 == 0


@pytest.mark.parametrize("seed", range(5))
def test_any_order_in_any_parts(seed: int, tmp_path: Path) -> None:
    reference = tmp_path / "reference.gguf"
    written(reference)
    chooser = random.Random(seed)
    parts = []
    for index, data in enumerate(contents()):
        cuts = sorted({0, len(data), *(chooser.randrange(len(data)) for _ in range(4))})
        parts += [(index, data[a:b], a) for a, b in itertools.pairwise(cuts)]
    chooser.shuffle(parts)
    path = tmp_path / "a.gguf"
    with GGUFWriter(path, FIELDS, TENSORS, digest=True) as writer:
        for index, data, start in parts:
            writer.write(index, bytearray(data), start)
    assert path.read_bytes() == reference.read_bytes()
    assert writer.digest == hashlib.sha256(reference.read_bytes()).hexdigest()


def test_threads_write_one_file(tmp_path: Path) -> None:
    reference = tmp_path / "reference.gguf"
    written(reference)
    with GGUFWriter(tmp_path / "a.gguf", FIELDS, TENSORS, digest=True) as writer:

        def put(index: int, data: bytes) -> None:
            for start in range(0, len(data), 16):
                writer.write(index, data[start : start + 16], start)

        threads = [threading.Thread(target=put, args=pair) for pair in enumerate(contents())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "a.gguf").read_bytes() == reference.read_bytes()
    assert writer.digest == hashlib.sha256(reference.read_bytes()).hexdigest()


def test_in_order_the_digest_needs_no_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = os.preadv

    def counted(fd: int, buffers: Any, offset: int) -> int:
        count = plain(fd, buffers, offset)
        read.append(count)
        return count

    monkeypatch.setattr(os, "preadv", counted)
    writer = written(tmp_path / "a.gguf", digest=True)
    # Only the padding behind the last tensor is left to read.
    assert sum(read) < 32
    assert writer.digest == hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest()


def test_no_digest_unless_asked(tmp_path: Path) -> None:
    assert written(tmp_path / "a.gguf").digest is None


def test_without_tensors(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "a.gguf", FIELDS, [], digest=True) as writer:
        pass
    data = (tmp_path / "a.gguf").read_bytes()
    assert writer.digest == hashlib.sha256(data).hexdigest()
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert len(file.fields) == len(FIELDS)


@pytest.mark.parametrize("digest", [False, True])
def test_tensors_of_nothing_need_no_write(digest: bool, tmp_path: Path) -> None:
    tensors = [
        TensorSpec("a", (32, 0), "Q8_0"),
        TensorSpec("b", (3,), "F32"),
        TensorSpec("c", (0,), "F32"),
        TensorSpec("d", (), "F32"),
    ]
    path = tmp_path / "a.gguf"
    with GGUFWriter(path, FIELDS, tensors, digest=digest) as writer:
        writer.write(0, b"")
        writer.write(1, b"x" * 12)
        writer.write(2, b"")
        writer.write(3, b"y" * 4)
    with GGUFFile(path) as file:
        assert [file.read(t).tobytes() for t in file.tensors.values()] == [
            b"",
            b"x" * 12,
            b"",
            b"y" * 4,
        ]
    if digest:
        assert writer.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_block_sizes_are_those_of_the_kernels() -> None:
    table = pytest.importorskip("gpukit_kernels.table")
    for name, kind in table.QUANTS.items():
        size = type_sizes()[name]
        assert (size.id, size.block, size.nbytes) == (kind.id, kind.block, kind.nbytes)
