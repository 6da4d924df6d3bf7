"""A blob that has not arrived whole, named as Ollama names it, which can go on with it.

blobs/sha256-<hex>-partial        the bytes in their places, holes between
blobs/sha256-<hex>-partial-<N>    {"N":0,"Offset":0,"Size":…,"Completed":…}, one a part
"""

import errno
import fcntl
import json
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gpukit.errors import StoreError
from gpukit.formats.positioned import read_at, read_whole, start_writeback, write_at
from gpukit.remote.wire import Stopped
from gpukit.store.blobs import blob_path
from gpukit.store.manifest import Layer

# A part is a sixteenth of the blob within these bounds.
LEAST_PART, MOST_PART = 100_000_000, 1_000_000_000
PARTS = 16
# After so many bytes a part's file says what has come.
NOTE_EVERY = 8 << 20
_KEYS = ("N", "Offset", "Size", "Completed")
_BUFFER = 1 << 19
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass
class Part:
    """A stretch of the blob, of which the first `completed` bytes are on the disk."""

    number: int
    offset: int
    size: int
    completed: int = 0

    @property
    def position(self) -> int:
        return self.offset + self.completed

    @property
    def left(self) -> int:
        return self.size - self.completed


def part_size(size: int) -> int:
    """Bytes of the parts of a blob of `size`."""
    return min(max(-(-size // PARTS), LEAST_PART), MOST_PART)


def on_disk(blobs: Path, layer: Layer) -> int:
    """Bytes of the disk that the unfinished blob of `layer` takes already."""
    path = blob_path(blobs, layer.digest)
    try:
        return path.with_name(path.name + "-partial").lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


class Partial:
    """The unfinished blob of `layer`, held by this process until `close`."""

    def __init__(self, blobs: Path, layer: Layer, waiting: Callable[[], None]) -> None:
        """Take hold of it, after any other process that has it; `waiting` tells of that."""
        self.layer = layer
        self.blob = blob_path(blobs, layer.digest)
        self.path = self.blob.with_name(self.blob.name + "-partial")
        self._fd = self._hold(waiting)
        self.parts: list[Part] = []
        self._hashed, self._hasher = 0, sha256()
        self._lock, self._closed = threading.Lock(), False

    def _hold(self, waiting: Callable[[], None]) -> int:
        told = False
        while True:
            fd = self._opened()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The one who held it may have made it a blob, or removed it.
                if self.path.exists() and os.path.samestat(os.fstat(fd), self.path.lstat()):
                    return fd
            except BlockingIOError:
                if not told:
                    waiting()
                told = True
                threading.Event().wait(0.2)
            except OSError as error:
                os.close(fd)
                raise StoreError(
                    f"{self.path}: this file system has no file locks ({error.strerror}): set "
                    "GPUKIT_MODELS to a folder on one that has them"
                ) from None
            os.close(fd)

    def _opened(self) -> int:
        try:
            fd = os.open(self.path, _OPEN | os.O_CREAT, 0o644)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR):
                raise
        raise StoreError(f"{self.path}: no file, as an unfinished pull is one: remove it")

    def close(self) -> None:
        """Let others have it. Threads that still wait for a server write nothing any more."""
        with self._lock:
            self._closed = True
            os.close(self._fd)

    @property
    def arrived(self) -> bool:
        """Whether somebody else has made the blob meanwhile."""
        return self.blob.is_file() and self.blob.stat().st_size == self.layer.size

    @property
    def done(self) -> int:
        """Bytes that have arrived."""
        return sum(part.completed for part in self.parts)

    def resume(self) -> None:
        """Read what an earlier run has left, or begin anew."""
        found = [part for path in self._part_files() if (part := _read_part(path))]
        found.sort(key=lambda part: part.number)
        whole = os.fstat(self._fd).st_size == self.layer.size
        if whole and _tiles(found, self.layer.size):
            self.parts = found
            return
        self._drop_parts()
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, self.layer.size)
        step = part_size(self.layer.size)
        starts = range(0, self.layer.size, step)
        self.parts = [
            Part(n, start, min(step, self.layer.size - start)) for n, start in enumerate(starts)
        ]

    def join(self) -> None:
        """Make one part of all, of what has come without a hole: where ranges cannot be had."""
        come = self._prefix()
        self._drop_parts()
        self.parts = [Part(0, 0, self.layer.size, come)]

    def write(self, part: Part, data: memoryview) -> None:
        """Put the next bytes of `part` in their place; `Stopped` after `close`."""
        with self._lock:
            if self._closed:
                raise Stopped
            write_at(self._fd, data, part.position)
        before, part.completed = part.completed, part.completed + len(data)
        if part.completed // NOTE_EVERY != before // NOTE_EVERY or not part.left:
            self.note(part)

    def note(self, part: Part) -> None:
        """Let the part's file say what has come."""
        values = (part.number, part.offset, part.size, part.completed)
        named = dict(zip(_KEYS, values, strict=True))
        text = json.dumps(named, separators=(",", ":")) + "\n"
        with self._lock:
            if self._closed:
                return
            fd = os.open(f"{self.path}-{part.number}", _OPEN | os.O_CREAT, 0o644)
            try:
                # It only grows, so one write leaves a whole line, whatever happens.
                write_at(fd, memoryview(text.encode()), 0)
                os.ftruncate(fd, len(text))
            finally:
                os.close(fd)

    def hash_some(self, most: int) -> bool:
        """Hash `most` bytes of what has come without a hole; whether there is more of that."""
        first, end = self._hashed, min(self._prefix(), self._hashed + most)
        buffer = memoryview(bytearray(min(_BUFFER, max(end - first, 1))))
        while self._hashed < end:
            count = read_at(self._fd, buffer[: end - self._hashed], self._hashed)
            if not count:
                return False
            self._hasher.update(buffer[:count])
            self._hashed += count
        if self._hashed > first:
            # It is not read again, so the disk may have it now: the sync at the end is short.
            start_writeback(self._fd, first, self._hashed - first)
        return self._hashed < self._prefix()

    def digest(self) -> str:
        """`sha256:…` of what has arrived, which is hashed to the end here."""
        self.hash_some(self.layer.size)
        return f"sha256:{self._hasher.hexdigest()}"

    def sync(self) -> None:
        os.fsync(self._fd)

    def remove(self) -> None:
        """Remove it with its parts: what came was wrong."""
        self._drop_parts()
        self.path.unlink(missing_ok=True)

    def settle(self) -> None:
        """Remove what tells of parts: the blob is whole and has its name."""
        self._drop_parts()

    def _prefix(self) -> int:
        come = 0
        for part in self.parts:
            come += part.completed
            if part.left:
                break
        return come

    def _part_files(self) -> list[Path]:
        pattern = re.compile(re.escape(self.path.name) + r"-\d{1,6}")
        names = os.listdir(self.path.parent)
        return [self.path.parent / name for name in names if pattern.fullmatch(name)]

    def _drop_parts(self) -> None:
        for path in self._part_files():
            path.unlink(missing_ok=True)


def _read_part(path: Path) -> Part | None:
    try:
        root = json.loads(read_whole(path, 4096))
        values = [root[key] for key in _KEYS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(type(value) is int and 0 <= value < 2**63 for value in values):
        return None
    part = Part(*values)
    return part if part.completed <= part.size else None


def _tiles(parts: list[Part], size: int) -> bool:
    """Whether the parts cover all bytes once, in order."""
    at = 0
    for number, part in enumerate(parts):
        if part.number != number or part.offset != at:
            return False
        at += part.size
    return at == size
