"""Writes GGUF files: the layout is planned first, then data goes to known places in any order.

The file is version 3, little endian, with the header that the gguf package would write for the same
fields and tensors. It appears under its name only when every byte is there (see `atomic`).
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from gpukit.errors import DiskError, GGUFError
from gpukit.formats import atomic
from gpukit.formats.gguf_fields import (
    CODES,
    DEFAULT_ALIGNMENT,
    Field,
    TensorSpec,
    ValueType,
    aligned,
    type_sizes,
)
from gpukit.formats.gguf_reader import MAGIC, MAX_DIMENSIONS, MAX_NAME
from gpukit.formats.positioned import read_at, write_at

VERSION = 3
HASH_CHUNK = 8 << 20


@dataclass(frozen=True)
class Layout:
    """Where everything goes: `offsets[i]` is the place of tensor i in the file of `size` bytes."""

    header: bytes
    offsets: tuple[int, ...]
    size: int


def plan_layout(
    fields: Iterable[Field], tensors: Sequence[TensorSpec], alignment: int = DEFAULT_ALIGNMENT
) -> Layout:
    """The header's bytes and the tensors' places; `GGUFError` for what no reader would take."""
    fields = list(fields)
    out = bytearray(MAGIC + struct.pack("<Iqq", VERSION, len(tensors), len(fields)))
    declared = {f.key: f.value for f in fields}.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment != declared:
        raise GGUFError(f"alignment is {alignment}, general.alignment says {declared}")
    if alignment < 1 or alignment & (alignment - 1):
        raise GGUFError(f"alignment is {alignment}, which is no power of two")
    seen: set[str] = set()
    for field in fields:
        if not field.key or "\0" in field.key:
            raise GGUFError(f"metadata key {field.key!r} is empty or holds a NUL")
        if field.key in seen:
            raise GGUFError(f"metadata key {field.key!r} stands twice")
        seen.add(field.key)
        out += _text(field.key) + struct.pack("<I", field.type) + _value(field)
    relative, at = [], 0
    for tensor in tensors:
        out += _entry(tensor, at, seen)
        relative.append(at)
        at = aligned(at + tensor.nbytes, alignment)
    # Without tensors there is no data section to align.
    start = aligned(len(out), alignment) if tensors else len(out)
    out += bytes(start - len(out))
    return Layout(bytes(out), tuple(start + offset for offset in relative), start + at)


def _entry(tensor: TensorSpec, offset: int, seen: set[str]) -> bytes:
    name = tensor.name.encode()
    if not 0 < len(name) <= MAX_NAME or b"\0" in name:
        raise GGUFError(
            f"tensor name {tensor.name!r} has {len(name)} bytes, 1 to {MAX_NAME} without NUL fit"
        )
    if f"tensor {tensor.name}" in seen:
        raise GGUFError(f"tensor {tensor.name!r} stands twice")
    seen.add(f"tensor {tensor.name}")
    if len(tensor.ne) > MAX_DIMENSIONS:
        raise GGUFError(
            f"{tensor.name}: {len(tensor.ne)} dimensions, {MAX_DIMENSIONS} are possible"
        )
    shape = struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne)
    return _text(tensor.name) + shape + struct.pack("<IQ", type_sizes()[tensor.type].id, offset)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(field: Field) -> bytes:
    try:
        if field.type is ValueType.STRING:
            return _text(field.value)
        if field.type is not ValueType.ARRAY:
            return struct.pack("<" + CODES[field.type], field.value)
        head = struct.pack("<IQ", _item(field), len(field.value))
        if field.item is ValueType.STRING:
            return head + b"".join(map(_text, field.value))
        return head + struct.pack(f"<{len(field.value)}{CODES[_item(field)]}", *field.value)
    except (struct.error, TypeError, AttributeError, OverflowError, UnicodeEncodeError) as error:
        shown = repr(field.value)[:60]
        raise GGUFError(f"{field.key}: {shown} is no {field.type.name}: {error}") from None


def _item(field: Field) -> ValueType:
    if field.item is None or field.item is ValueType.ARRAY:
        raise GGUFError(f"{field.key}: an array needs the type of its items")
    return field.item


class GGUFWriter:
    """One GGUF file being written; use as a context manager.

        with GGUFWriter(path, fields, tensors) as writer:
            writer.write(index, data, start)

    `write` takes the bytes of tensor `index` from position `start` of its data on; any order, any
    thread, every byte once. On leaving the block the file is complete, synced and renamed into
    place, or, after an error, gone. With `digest=True` the file's sha256 is in `digest` afterwards;
    it is taken on the way as far as data arrives in the order of the file.
    """

    def __init__(
        self,
        path: Path,
        fields: Iterable[Field],
        tensors: Sequence[TensorSpec],
        *,
        alignment: int = DEFAULT_ALIGNMENT,
        digest: bool = False,
    ) -> None:
        self.path = Path(path)
        self.tensors = tuple(tensors)
        self.layout = plan_layout(fields, tensors, alignment)
        self.digest: str | None = None
        self._hash = hashlib.sha256() if digest else None
        self._hashed = 0
        ends = [o + t.nbytes for o, t in zip(self.layout.offsets, self.tensors, strict=True)]
        self._after_padding = dict(zip(ends, self.layout.offsets[1:], strict=False))
        self._hash_lock = Lock()
        self._written: list[list[tuple[int, int]]] = [[] for _ in self.tensors]
        self._lock = Lock()
        self._fd = -1

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.layout.size

    def __enter__(self) -> Self:
        folder = self.path.parent
        with atomic.disk_errors(self.path):
            atomic.remove_abandoned(folder)
        atomic.need_room(self.path, self.size)
        self._temporary = atomic.temporary_name(self.path)
        with atomic.disk_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o644)
            try:
                # The length is set at once: padding is what nobody writes, and reads as zeros.
                os.ftruncate(self._fd, self.size)
                self._put(memoryview(self.layout.header), 0)
            except BaseException:
                self._discard()
                raise
        return self

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    def _finish(self) -> None:
        self._check_complete()
        with atomic.disk_errors(self.path):
            if self._hash is not None:
                self._hash_rest(self._hash)
                self.digest = self._hash.hexdigest()
            os.fsync(self._fd)
            self._temporary.replace(self.path)
            atomic.sync_folder(self.path.parent)
        os.close(self._fd)
        self._fd = -1

    def _check_complete(self) -> None:
        """Every byte of every tensor was written, and once: the digest has seen it only once."""
        for tensor, parts in zip(self.tensors, self._written, strict=True):
            at = 0
            for start, end in sorted(part for part in parts if part[0] < part[1]):
                if start != at:
                    what = "were not written" if start > at else "were written twice"
                    raise GGUFError(
                        f"{self.path}: {tensor.name}: bytes {min(at, start)} to {max(at, start)} "
                        f"of {tensor.nbytes} {what}"
                    )
                at = end
            if at != tensor.nbytes:
                raise GGUFError(
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

    def _discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._temporary.unlink(missing_ok=True)
