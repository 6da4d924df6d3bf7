"""Writing GGUF: the gguf package's bytes, whole files or none, whatever order the data comes in."""

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpukit.errors import DiskError, GGUFError
from gpukit.formats.gguf_fields import (
    Field,
    TensorSpec,
    ValueType,
    array,
    boolean,
    f32,
    i32,
    string,
    type_sizes,
    u16,
    u32,
    u64,
)
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter, plan_layout

V = ValueType
FIELDS = [
    string("general.architecture", "llama"),
    string("general.name", "Ünïcode ▁ 𝄞"),
    string("empty", ""),
    Field("u8", V.UINT8, 255),
    Field("i8", V.INT8, -128),
    u16("u16", 65535),
    Field("i16", V.INT16, -32768),
    u32("u32", 0xFFFFFFFF),
    i32("i32", -(1 << 31)),
    f32("f32", 1e-5),
    boolean("yes", True),
    boolean("no", False),
    u64("u64", (1 << 64) - 1),
    Field("i64", V.INT64, -(1 << 63)),
    Field("f64", V.FLOAT64, 0.1),
    array("strings", V.STRING, ["a", "", "ß", "▁the"]),
    array("floats", V.FLOAT32, [0.5, -1.25, float("inf")]),
    array("ints", V.INT32, [1, -2, 3]),
    array("bools", V.BOOL, [True, False]),
]
TENSORS = [
    TensorSpec("token_embd.weight", (256, 5), "Q4_K"),
    TensorSpec("blk.0.attn_norm.weight", (7,), "F32"),
    TensorSpec("blk.0.attn_q.weight", (32, 3), "Q8_0"),
    TensorSpec("odd", (5, 1, 3), "BF16"),
    TensorSpec("four", (2, 3, 2, 2), "F16"),
]


def contents(tensors: list[TensorSpec] = TENSORS) -> list[bytes]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, 256, t.nbytes, dtype=np.uint8).tobytes() for t in tensors]


def written(path: Path, **options: Any) -> GGUFWriter:
    with GGUFWriter(path, FIELDS, TENSORS, **options) as writer:
        for index, data in enumerate(contents()):
            writer.write(index, data)
    return writer


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


def _write(path: Path, writes: list[tuple[int, bytes, int]]) -> None:
    with GGUFWriter(path, FIELDS, TENSORS, digest=True) as writer:
        for index, data, start in writes:
            writer.write(index, data, start)


def fails(path: Path, match: str, writes: list[tuple[int, bytes, int]]) -> None:
    with pytest.raises(GGUFError, match=match) as caught:
        _write(path, writes)
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_missing_bytes_leave_nothing(tmp_path: Path) -> None:
    parts = [(i, data, 0) for i, data in enumerate(contents())]
    path = tmp_path / "a.gguf"
    fails(path, "token_embd.weight: 0 of 720 bytes", [])
    fails(path, "four: 0 of 48 bytes", parts[:-1])
    fails(path, "four: 47 of 48 bytes", [*parts[:-1], (4, parts[4][1][:-1], 0)])
    fails(path, "bytes 0 to 1 of 48 were not written", [*parts[:-1], (4, parts[4][1][1:], 1)])


def test_bytes_written_twice_do_not_stand_for_missing_ones(tmp_path: Path) -> None:
    parts = [(i, data, 0) for i, data in enumerate(contents())]
    half = parts[4][1][:24]
    path = tmp_path / "a.gguf"
    fails(path, "bytes 0 to 24 of 48 were written twice", [*parts[:-1], (4, half, 0), (4, half, 0)])
    # All is there, but the digest may have seen the first version.
    fails(path, "were written twice", [*parts, parts[0]])


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with GGUFWriter(tmp_path / "a.gguf", FIELDS, TENSORS) as writer:
            writer.write(0, contents()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 721), (720, 1), (719, 2)])
def test_writes_outside_a_tensor(start: int, count: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"token_embd.weight: bytes .* of 720"),
        GGUFWriter(tmp_path / "a.gguf", FIELDS, TENSORS) as writer,
    ):
        writer.write(0, bytes(count), start)
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(GGUFError), GGUFWriter(path, FIELDS, TENSORS):
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"old"
    with GGUFWriter(path, FIELDS, TENSORS) as writer:
        for index, data in enumerate(contents()):
            writer.write(index, data)
            assert path.read_bytes() == b"old"
    assert path.read_bytes()[:4] == b"GGUF"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import sys
from pathlib import Path
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.gguf_writer import GGUFWriter
with GGUFWriter(Path(sys.argv[1]), [], [TensorSpec("a", (1024,), "F32")]) as writer:
    writer.write(0, bytes(2048))
    print("halfway", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        (left,) = set(tmp_path.iterdir()) - {path}
        # A second writer leaves alone what a living process writes.
        written(tmp_path / "b.gguf")
        assert left.exists()
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    assert left.exists()
    written(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


LIMITED = """
import resource, sys
from pathlib import Path
from gpukit.errors import DiskError
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.gguf_writer import GGUFWriter
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    if sys.argv[2] == "before":
        limit()
    with GGUFWriter(Path(sys.argv[1]), [], [TensorSpec("a", (1 << 18,), "F32")]) as writer:
        limit()
        for start in range(0, 1 << 20, 1 << 14):
            writer.write(0, bytes(1 << 14), start)
except DiskError as error:
    print(error)
"""


@pytest.mark.parametrize("when", ["before", "midway"])
def test_a_full_disk_is_one_line_and_leaves_nothing(when: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    command = [sys.executable, "-c", LIMITED, str(path), when]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{path}: File too large")
    assert "bytes are free" in line
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    huge = TensorSpec("a", (1 << 58,), "F32")
    with pytest.raises(DiskError, match=r"bytes are needed, \d+ are free"):
        GGUFWriter(tmp_path / "a.gguf", [], [huge]).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        GGUFWriter(tmp_path / "none" / "a.gguf", [], []).__enter__()


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.gguf" / "inside").mkdir(parents=True)
    with pytest.raises(DiskError, match=r"a\.gguf: "):
        written(tmp_path / "a.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_file_that_someone_truncates(tmp_path: Path) -> None:
    def truncated() -> None:
        with GGUFWriter(tmp_path / "a.gguf", FIELDS, TENSORS, digest=True) as writer:
            for index, data in reversed(list(enumerate(contents()))):
                writer.write(index, data)
            (temporary,) = tmp_path.iterdir()
            os.truncate(temporary, 100)

    with pytest.raises(DiskError, match="something else has changed"):
        truncated()
    assert list(tmp_path.iterdir()) == []


UNWRITABLE: dict[str, tuple[list[Field], list[TensorSpec], str]] = {
    "key twice": ([u32("a", 1), u32("a", 1)], [], "stands twice"),
    "empty key": ([u32("", 1)], [], "empty"),
    "key with NUL": ([u32("a\0", 1)], [], "NUL"),
    "too large": ([u32("a", 1 << 32)], [], "no UINT32"),
    "negative": ([u32("a", -1)], [], "no UINT32"),
    "float too large": ([f32("a", 1e39)], [], "no FLOAT32"),
    "text for a number": ([Field("a", V.INT8, "1")], [], "no INT8"),
    "number for a text": ([Field("a", V.STRING, 1)], [], "no STRING"),
    "lone surrogate": ([string("a", "\ud800")], [], "no STRING"),
    "array without item type": ([Field("a", V.ARRAY, [1])], [], "type of its items"),
    "array of arrays": ([array("a", V.ARRAY, [[1]])], [], "type of its items"),
    "mixed array": ([array("a", V.INT32, [1, "2"])], [], "no ARRAY"),
    "array of texts with a number": ([array("a", V.STRING, ["a", 2])], [], "no ARRAY"),
    "alignment elsewhere": ([u32("general.alignment", 64)], [], "alignment is 32"),
    "tensor twice": ([], [TENSORS[1], TENSORS[1]], "stands twice"),
    "no name": ([], [TensorSpec("", (1,), "F32")], "0 bytes"),
    "name of 64 bytes": ([], [TensorSpec("é" * 32, (1,), "F32")], "64 bytes"),
    "name with NUL": ([], [TensorSpec("a\0b", (1,), "F32")], "NUL"),
    "5 dimensions": ([], [TensorSpec("a", (1,) * 5, "F32")], "5 dimensions"),
    "ragged row": ([], [TensorSpec("a", (33,), "Q8_0")], "no multiple of 32"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_no_reader_takes_is_not_written(case: str, tmp_path: Path) -> None:
    fields, tensors, word = UNWRITABLE[case]
    with pytest.raises(GGUFError) as caught:
        GGUFWriter(tmp_path / "a.gguf", fields, tensors)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_alignments_that_are_no_power_of_two() -> None:
    with pytest.raises(GGUFError, match="no power of two"):
        plan_layout([u32("general.alignment", 48)], [], alignment=48)


def test_block_sizes_are_those_of_the_kernels() -> None:
    table = pytest.importorskip("gpukit_kernels.table")
    for name, kind in table.QUANTS.items():
        size = type_sizes()[name]
        assert (size.id, size.block, size.nbytes) == (kind.id, kind.block, kind.nbytes)
