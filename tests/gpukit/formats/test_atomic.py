"""Files appear whole or not at all, and leave nothing behind."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpukit.errors import DiskError, one_line
from gpukit.formats import positioned
from gpukit.formats.atomic import (
    atomic_write,
    disk_errors,
    need_room,
    remove_abandoned,
    remove_temporaries,
    temporary_name,
)
from gpukit.formats.positioned import read_at, write_at


def gone_pid() -> int:
    """The id of a process that has ended and been waited for."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_writing_and_replacing(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    atomic_write(path, data)
    assert path.read_bytes() == data
    assert names(tmp_path) == ["a.json"]


def test_mode(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"", 0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "target").write_bytes(b"old")
    (tmp_path / "again").symlink_to("there/target")
    (tmp_path / "link").symlink_to("again")
    (tmp_path / "new").symlink_to("there/new")
    atomic_write(tmp_path / "link", b"new")
    atomic_write(tmp_path / "new", b"made")
    assert (tmp_path / "link").readlink() == Path("again")
    assert (tmp_path / "again").readlink() == Path("there/target")
    assert (tmp_path / "there" / "target").read_bytes() == b"new"
    assert (tmp_path / "there" / "new").read_bytes() == b"made"
    assert names(tmp_path / "there") == ["new", "target"]


def test_the_longest_names(tmp_path: Path) -> None:
    for name in ("n" * 255, "ß" * 127, os.fsdecode(b"\xff" * 255)):
        atomic_write(tmp_path / name, b"data")
        assert (tmp_path / name).read_bytes() == b"data"
    assert len(names(tmp_path)) == 3


def test_only_abandoned_files_are_removed(tmp_path: Path) -> None:
    gone = gone_pid()
    left = [f".a.gguf.gpukit-{gone}-0123abcd.tmp", f".b b.gpukit-{gone}-ffffffff.tmp"]
    far = f".c.gpukit-{'9' * 40}-0123abcd.tmp"
    kept = [
        f".a.gguf.gpukit-{os.getpid()}-0123abcd.tmp",
        f"a.gguf.gpukit-{gone}-0123abcd.tmp",
        f".a.gguf.gpukit-{gone}-0123abc.tmp",
        f".a.gguf.gpukit-{gone}-0123abcd.tmp.gguf",
        ".a.gguf.gpukit--0123abcd.tmp",
        "a.tmp",
    ]
    for name in [*left, far, *kept]:
        (tmp_path / name).write_bytes(b"")
    removed = remove_abandoned(tmp_path)
    assert sorted(path.name for path in removed) == sorted([*left, far])
    assert names(tmp_path) == sorted(kept)


def test_what_another_machine_writes_is_left_alone(tmp_path: Path) -> None:
    gone, ours = gone_pid(), temporary_name(tmp_path / "a").name.split("-")[-1][:8]
    theirs = "00000000" if ours != "00000000" else "11111111"
    other, old, mine = (
        tmp_path / f".{name}.gpukit-{gone}-{machine}0123abcd.tmp"
        for name, machine in (("a", theirs), ("b", theirs), ("c", ours))
    )
    for path in (other, old, mine):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert sorted(remove_abandoned(tmp_path)) == [old, mine]
    assert names(tmp_path) == [other.name]
    remove_temporaries(tmp_path / "b")
    assert names(tmp_path) == [other.name]
    remove_temporaries(tmp_path / "a")
    assert names(tmp_path) == []


def test_the_next_write_removes_what_was_abandoned(tmp_path: Path) -> None:
    (tmp_path / f".a.gpukit-{gone_pid()}-0123abcd.tmp").write_bytes(b"half")
    atomic_write(tmp_path / "b", b"x")
    assert names(tmp_path) == ["b"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_process_that_nobody_has_asked_about_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # ends with the process
        state = Path(f"/proc/{process.pid}/stat")
        while b") Z " not in state.read_bytes():
            time.sleep(0.01)
        left = tmp_path / f".a.gpukit-{process.pid}-0123abcd.tmp"
        left.write_bytes(b"half")
        assert remove_abandoned(tmp_path) == [left]


def test_temporary_names(tmp_path: Path) -> None:
    first, second = (temporary_name(tmp_path / "a.gguf") for _ in range(2))
    assert first != second
    assert first.parent == tmp_path
    first.write_bytes(b"")
    assert remove_abandoned(tmp_path) == []


LOOP = """
import sys
from pathlib import Path
from gpukit.formats.atomic import atomic_write
print("ready", flush=True)
while True:
    for letter in b"ab":
        atomic_write(Path(sys.argv[1]), bytes([letter]) * 100_000)
"""


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for round_ in range(3):
        atomic_write(path, b"a" * 100_000)
        command = [sys.executable, "-c", LOOP, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(50 + 17 * round_):
                data = path.read_bytes()
                assert data in (b"a" * 100_000, b"b" * 100_000)
            process.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert data in (b"a" * 100_000, b"b" * 100_000)
    atomic_write(path, b"end")
    assert names(tmp_path) == ["a"]


LIMITED = """
import resource, sys
from pathlib import Path
from gpukit.errors import DiskError
from gpukit.formats.atomic import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write(Path(sys.argv[1]), bytes(1001))
except DiskError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    told = "File too large (this process may write files of 1000 bytes); raise that limit, ulimit"
    assert line.startswith(f"{path}: {told}")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        atomic_write(tmp_path / "none" / "a", b"")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(DiskError, match="folder: "):
        atomic_write(tmp_path / "folder", b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="Not a directory"):
        atomic_write(tmp_path / "file" / "a", b"")
    with pytest.raises(DiskError, match="too long"):
        atomic_write(tmp_path / ("n" * 300), b"")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_what_is_free(code: int, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"\d+ bytes are free"), disk_errors(tmp_path / "a"):
        raise OSError(code, os.strerror(code))


def test_a_file_that_a_file_system_cannot_hold(tmp_path: Path) -> None:
    told = r"a: File too large \(its file system has no files so large\); write to another disk$"
    with pytest.raises(DiskError, match=told), disk_errors(tmp_path / "a"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    # What is refused when it is read has a word of its own.
    with pytest.raises(DiskError, match=r"a: over 10 bytes$"), disk_errors(tmp_path / "a"):
        raise OSError(errno.EFBIG, "over 10 bytes")


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), disk_errors(Path("a")):
        raise ValueError("mine")
    with pytest.raises(DiskError, match=r"^a: text alone$"), disk_errors(Path("a")):
        raise OSError("text alone")


def test_room(tmp_path: Path) -> None:
    need_room(tmp_path / "a", 0)
    with pytest.raises(DiskError, match=f"{1 << 60} bytes are needed"):
        need_room(tmp_path / "a", 1 << 60)
    with pytest.raises(DiskError, match="No such file"):
        need_room(tmp_path / "none" / "a", 0)


def test_reading_and_writing_at_positions(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        write_at(file.fileno(), memoryview(b"def"), 3)
        write_at(file.fileno(), memoryview(b"abc"), 0)
        buffer = bytearray(8)
        assert read_at(file.fileno(), memoryview(buffer), 1) == 5
        assert bytes(buffer) == b"bcdef\0\0\0"
        assert read_at(file.fileno(), memoryview(buffer), 6) == 0


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_more_than_one_piece(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positioned, "CHUNK", chunk)
    with (tmp_path / "a").open("w+b") as file:
        write_at(file.fileno(), memoryview(b"0123456789"), 2)
        buffer = bytearray(20)
        assert read_at(file.fileno(), memoryview(buffer), 1) == 11
        assert bytes(buffer) == b"\0" + b"0123456789" + bytes(9)


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(number: int) -> None:
        for _ in range(20):
            atomic_write(path, b"%d" % number * 9)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in {b"%d" % n * 9 for n in range(4)}
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blk.0.ffn ▁ß", "blk.0.ffn ▁ß"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\x1b[2J\0", r"\x1b[2J\x00"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\u2028\u202e", r"\u2028\u202e"),
    ],
)
def test_text_for_messages(text: str, shown: str) -> None:
    assert one_line(text) == shown
