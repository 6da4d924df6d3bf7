"""Writes files whose layout is known beforehand: data goes to its place in any order.

A file appears under its name only when every byte is there (see `atomic`).
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, Self

from gpukit.errors import DiskError, FormatError
from gpukit.formats import atomic
from gpukit.formats.closing import Publishing
from gpukit.formats.positioned import read_at, start_writeback, write_at

HASH_CHUNK = 8 << 20


@dataclass(frozen=True)
class Layout:
    """Where everything goes: `offsets[i]` is the place of tensor i in the file of `size` bytes."""

    header: bytes
    offsets: tuple[int, ...]
    size: int


class Sized(Protocol):
    """What has a name and a size in bytes."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


class PlacedWriter(Publishing):
    """One file of known layout being written; use as a context manager.

        with PlacedWriter(path, tensors, layout) as writer:
            writer.write(index, data, start)

    `write` takes the bytes of tensor `index` from position `start` of its data on; any order, any
    thread, every byte once. On leaving the block the file is complete, synced and renamed into
    place, or, after an error, gone. With `digest=True` the file's sha256 is in `digest` afterwards;
    it is taken on the way as far as data arrives in the order of the file.
    """

    # What a caller gets who did not write every byte once.
    incomplete: type[FormatError] = FormatError

    def __init__(
        self, path: Path, tensors: Sequence[Sized], layout: Layout, *, digest: bool = False
    ) -> None:
        self.path = Path(path)
        self.tensors = tuple(tensors)
        self.layout = layout
        self.digest: str | None = None
        self._hash = hashlib.sha256() if digest else None
        self._hashed = 0
        ends = [o + t.nbytes for o, t in zip(self.layout.offsets, self.tensors, strict=True)]
        self._after_padding = dict(zip(ends, self.layout.offsets[1:], strict=False))
        self._hash_lock = Lock()
        self._written: list[list[tuple[int, int]]] = [[] for _ in self.tensors]
        self._lock = Lock()
        self._fd = -1
        # A link stays one: the file that it leads to is replaced.
        self._target = atomic.target_of(self.path)
        self._temporary = atomic.temporary_name(self._target)
        self._kept = False

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.layout.size

    @property
    def in_order(self) -> bool:
        """Whether data in another order than the file's would have to be read again."""
        return self._hash is not None

    def __enter__(self) -> Self:
        self.open()
        return self

    def keep(self, partial: Path) -> None:
        """Write to `partial`, and leave that there after an error; before `open`. What it holds
        already `have` tells; the target itself may be given where it holds everything."""
        atomic.remove(self._temporary)
        self._temporary, self._kept = partial, True

    def have(self, index: int, start: int, size: int) -> None:
        """Bytes of tensor `index` that the file holds already: nobody writes them."""
        with self._lock:
            self._written[index].append((start, start + size))

    def sync(self) -> None:
        """All that is written now lasts through a power cut."""
        with atomic.disk_errors(self.path):
            os.fdatasync(self._fd)

    @property
    def inode(self) -> int:
        """Of the open file, whatever its name."""
        return os.fstat(self._fd).st_ino

    def open(self) -> None:
        """Make the file, header and all, under a temporary name."""
        with atomic.disk_errors(self.path):
            atomic.remove_abandoned(self.folder)
        atomic.need_room(self._target, self.size - self.held, self._temporary)
        with atomic.disk_errors(self.path):
            try:
                new = 0 if self._kept else os.O_EXCL
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | new
                self._fd = os.open(self._temporary, flags, 0o644)
                # The length is set at once: padding is what nobody writes, and reads as zeros.
                os.ftruncate(self._fd, self.size)
                self._put(memoryview(self.layout.header), 0)
            except BaseException:
                self.discard()
                raise

    @property
    def target(self) -> Path:
        """The file that is written, where `path` is a link that which it leads to."""
        return self._target

    @property
    def folder(self) -> Path:
        """Where the file lies as long as it has not got its name."""
        return self._temporary.parent

    @property
    def held(self) -> int:
        """Bytes of the disk that the file takes already."""
        if not self._kept:
            return 0
        try:
            return min(self._temporary.stat().st_blocks * 512, self.size)
        except OSError:
            return 0

    def write(self, index: int, data: bytes | bytearray | memoryview, start: int = 0) -> None:
        """Bytes `start` to `start + len(data)` of tensor `index`."""
        view = memoryview(data).cast("B")
        tensor = self.tensors[index]
        if start < 0 or start + len(view) > tensor.nbytes:
            raise ValueError(
                f"{tensor.name}: bytes {start} to {start + len(view)} of {tensor.nbytes}"
            )
        with atomic.disk_errors(self.path):
            self._put(view, self.layout.offsets[index] + start)
        with self._lock:
            self._written[index].append((start, start + len(view)))

    def _put(self, view: memoryview, at: int) -> None:
        write_at(self._fd, view, at)
        start_writeback(self._fd, at, len(view))
        if self._hash is None:
            return
        with self._hash_lock:
            if self._gap_is_padding(at):
                self._hash.update(bytes(at - self._hashed))
                self._hash.update(view)
                self._hashed = at + len(view)

    def _gap_is_padding(self, at: int) -> bool:
        """Whether only padding lies between what is hashed and `at`."""
        return at == self._hashed or self._after_padding.get(self._hashed) == at

    def complete(self) -> None:
        """Every byte is checked to be there and lasts; the file has its temporary name still."""
        self._check_complete()
        with atomic.disk_errors(self.path):
            if self._hash is not None:
                self._hash_rest(self._hash)
                self.digest = self._hash.hexdigest()
            os.fsync(self._fd)

    def publish(self) -> None:
        """Give the complete file its name."""
        with atomic.disk_errors(self.path):
            atomic.put_in_place(self._temporary, self._target)
        self._close()

    def _close(self) -> None:
        # A signal may raise between two steps: nobody is to close a number twice.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check_complete(self) -> None:
        """Every byte of every tensor was written, and once: the digest has seen it only once."""
        for tensor, parts in zip(self.tensors, self._written, strict=True):
            at = 0
            for start, end in sorted(part for part in parts if part[0] < part[1]):
                if start != at:
                    what = "were not written" if start > at else "were written twice"
                    raise self.incomplete(
                        f"{self.path}: {tensor.name}: bytes {min(at, start)} to {max(at, start)} "
                        f"of {tensor.nbytes} {what}"
                    )
                at = end
            if at != tensor.nbytes:
                raise self.incomplete(
                    f"{self.path}: {tensor.name}: {at} of {tensor.nbytes} bytes were written"
                )

    def _hash_rest(self, digest: Any) -> None:
        buffer = memoryview(bytearray(min(HASH_CHUNK, max(self.size - self._hashed, 1))))
        while self._hashed < self.size:
            part = buffer[: min(len(buffer), self.size - self._hashed)]
            count = read_at(self._fd, part, self._hashed)
            if count == 0:
                raise DiskError(
                    f"{self.path}: {self.size - self._hashed} bytes of {self.size} are gone: "
                    "something else has changed the file while it was written"
                )
            digest.update(part[:count])
            self._hashed += count

    def discard(self) -> None:
        """Close the file and remove it unless it is published or kept."""
        self._close()
        if not self._kept:
            atomic.remove(self._temporary)
