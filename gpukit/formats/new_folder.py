"""A folder that appears whole or not at all: made under a temporary name beside its place."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from gpukit.errors import ArgumentError, CheckpointError, DiskError
from gpukit.formats import atomic
from gpukit.formats.outputs import check_name
from gpukit.formats.positioned import open_to_read, read_at, write_at

# Bytes that are copied at a time.
COPIED = 8 << 20


def check_folder(out: Path, inputs: Iterable[Path] = ()) -> None:
    """`ArgumentError` where `out` is no place for a new folder, or lies in one of the folders
    `inputs`; `DiskError` where this user cannot make it. To be called before anything is read."""
    check_name(out)
    target = Path(os.path.realpath(out))
    with atomic.disk_errors(out):
        if target.exists() and not target.is_dir():
            raise ArgumentError(f"{out}: a file is there; name a new folder")
        if target.is_dir() and any(target.iterdir()):
            raise ArgumentError(f"{out}: a folder that is not empty; remove it or name another")
        parent = target.parent
        if not parent.is_dir():
            raise ArgumentError(f"{out}: there is no folder {parent}; make it first")
    for other in inputs:
        if target.is_relative_to(os.path.realpath(other)):
            raise ArgumentError(f"{out}: lies in {other}, which is read; name a folder elsewhere")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DiskError(f"{out}: you may not write to the folder {parent}")


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder to be filled with `size` bytes; at the end of the block it becomes `out`,
    after an error it is gone. Files in it are synced by who writes them."""
    target = Path(os.path.realpath(out))
    with atomic.disk_errors(out):
        atomic.remove_abandoned(target.parent)
    with _named(target, out):
        atomic.need_room(target, size)
    temporary = atomic.temporary_name(target)
    try:
        with _named(temporary, out), atomic.disk_errors(out):
            temporary.mkdir()
            yield temporary
            for folder in (*_folders(temporary), temporary):
                atomic.sync_folder(folder)
            atomic.put_in_place(temporary, target)
    except BaseException:
        # What the disk says about the rest must not hide what it said first.
        with suppress(OSError):
            atomic.remove(temporary)
        raise


@contextmanager
def _named(inner: Path, out: Path) -> Iterator[None]:
    """What the disk says of a file in `inner` is about `out`."""
    try:
        yield
    except DiskError as error:
        raise DiskError(str(error).replace(str(inner), str(out))) from None


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_dir()]


def small_size(texts: Mapping[str, str], files: Mapping[str, Path]) -> int:
    """Bytes of what `write_small` writes."""
    with_text = sum(len(text.encode()) for text in texts.values())
    return with_text + sum(path.stat().st_size for path in files.values())


def write_small(folder: Path, texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Write `texts` and copies of `files`, by their names in `folder`, and sync them."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with _synced(folder / name) as fd:
            write_at(fd, memoryview(text.encode()), 0)
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with _synced(folder / name) as fd:
            _copy(source, fd)


@contextmanager
def _synced(path: Path) -> Iterator[int]:
    """The descriptor of a new file, which lasts at the end of the block."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy(source: Path, fd: int) -> None:
    buffer, at = memoryview(bytearray(COPIED)), 0
    try:
        reading = open_to_read(source)
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error.strerror}") from None
    try:
        while count := read_at(reading, buffer, at):
            write_at(fd, buffer[:count], at)
            at += count
    finally:
        os.close(reading)
