"""A GGUF that cannot be written: nothing of it stays, and what was there does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.gguf_contents import FIELDS, TENSORS, V, contents, written

from gpukit.errors import DiskError, GGUFError
from gpukit.formats.gguf_fields import (
    Field,
    TensorSpec,
    array,
    f32,
    string,
    u32,
)
from gpukit.formats.gguf_writer import GGUFWriter, plan_layout


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
    assert "may write files of 65536 bytes" in line
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
