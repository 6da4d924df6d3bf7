"""Reads GGUF files, versions 2 and 3, and refuses malformed ones before allocating for them.

Every count is compared with the bytes that are left, so memory stays below a small multiple of the
header's own size whatever it claims. The rules are those of llama.cpp's gguf.cpp; names that are no
valid UTF-8 or hold a NUL are refused too, since C programs would see another name.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpukit.errors import GGUFError
from gpukit.formats.closing import Closing
from gpukit.formats.gguf_fields import (
    CODES,
    DEFAULT_ALIGNMENT,
    Field,
    TensorInfo,
    ValueType,
    aligned,
    type_names,
    type_sizes,
)
from gpukit.formats.pointers import POINTER, is_pointer
from gpukit.formats.positioned import open_to_read, read_at

MAGIC = b"GGUF"
MAX_LENGTH = 1 << 30  # of a string in bytes, of an array in items
MAX_NAME = 63
MAX_DIMENSIONS = 4
INT64_MAX = (1 << 63) - 1
# A key is at least a length and a type, a tensor's entry a length, a count, a type and an offset.
MIN_FIELD_BYTES = 13
MIN_TENSOR_BYTES = 24


class GGUFFile(Closing):
    """An open GGUF file: `fields` and `tensors` by name in file order; data is read on demand.

    Raises `GGUFError` (one line, with the file's name) for anything malformed or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._fd = open_to_read(self.path)
        except FileNotFoundError:
            raise GGUFError(f"{self.path}: no such file") from None
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self._open()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> None:
        try:
            self.size = os.fstat(self._fd).st_size
            with _mapped(self._fd, self.size, self.path) as view:
                header = _Header(view, self.path)
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be read: {error.strerror}") from None
        self.version: int = header.version
        self.alignment: int = header.alignment
        self.data_start: int = header.data_start
        self.fields: Mapping[str, Field] = header.fields
        self.tensors: Mapping[str, TensorInfo] = header.tensors

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a field, `default` where the file has none."""
        field = self.fields.get(key)
        return default if field is None else field.value

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; safe from several threads."""
        if start < 0 or start + len(buffer) > info.nbytes:
            raise ValueError(f"{info.name}: {start} + {len(buffer)} bytes of {info.nbytes}")
        try:
            got = read_at(self._fd, buffer, info.offset + start)
        except OSError as error:
            raise GGUFError(f"{self.path}: {info.name}: {error.strerror}") from None
        if got != len(buffer):
            raise GGUFError(
                f"{self.path}: {info.name}: the file ends at byte {info.offset + start + got}, "
                f"{len(buffer) - got} bytes short; it has changed since it was opened"
            )

    def read(self, info: TensorInfo) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The tensor's bytes, uint8 `[nbytes]`."""
        out = np.empty(info.nbytes, dtype=np.uint8)
        self.read_into(info, out.data)
        return out

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_gguf(path: Path) -> bool:
    """Whether the file begins with GGUF's magic."""
    try:
        with os.fdopen(open_to_read(path), "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def _mapped(fd: int, size: int, path: Path) -> mmap.mmap:
    if size < 24:
        start = os.pread(fd, len(MAGIC), 0)
        if start and not MAGIC.startswith(start):
            raise GGUFError(f"{path}: no GGUF file: it begins with {start!r}, not {MAGIC!r}")
        raise GGUFError(f"{path}: {size} bytes are too few for a GGUF header of 24")
    return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)


class _Header:
    """Parses header, metadata and tensor list from a mapped file."""

    def __init__(self, view: mmap.mmap, path: Path) -> None:
        self.view = view
        self.path = path
        self.size = len(view)
        self.at = 0
        n_tensors, n_fields = self._start()
        self.fields = self._fields(n_fields)
        self.alignment = self._alignment()
        entries = self._entries(n_tensors)
        self.data_start = aligned(self.at, self.alignment)
        if n_tensors and self.data_start > self.size:
            self._fail(f"data should start at byte {self.data_start} of {self.size}")
        self.tensors = self._placed(entries)

    def _fail(self, what: str) -> None:
        raise GGUFError(f"{self.path}: malformed GGUF: {what}")

    def _take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            self._fail(f"{what} of {count} bytes at byte {self.at}, {self.size - self.at} are left")
        self.at += count
        return self.view[self.at - count : self.at]

    def _number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code), what))[0]

    def _start(self) -> tuple[int, int]:
        magic = self._take(4, "magic")
        if magic != MAGIC and is_pointer(self.path):
            raise GGUFError(f"{self.path}: {POINTER}")
        if magic != MAGIC:
            raise GGUFError(f"{self.path}: no GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        self.version = self._number("I", "version")
        if self.version and self.version & 0xFFFF == 0:
            self._fail("big-endian; convert it on the machine that it was made for")
        if self.version not in (2, 3):
            self._fail(f"version {self.version}; versions 2 and 3 can be read")
        n_tensors, n_fields = self._number("q", "tensor count"), self._number("q", "field count")
        left = self.size - self.at
        for count, least, what in (
            (n_fields, MIN_FIELD_BYTES, "fields"),
            (n_tensors, MIN_TENSOR_BYTES, "tensors"),
        ):
            if count < 0 or count * least > left:
                self._fail(f"{count} {what} do not fit into the {left} bytes that are left")
        return n_tensors, n_fields

    def _fields(self, count: int) -> dict[str, Field]:
        fields: dict[str, Field] = {}
        for _ in range(count):
            key = self._name("key")
            if not key:
                self._fail(f"an empty key before byte {self.at}")
            if key in fields:
                self._fail(f"key {key!r} stands twice")
            fields[key] = self._field(key)
        return fields

    def _field(self, key: str) -> Field:
        kind = self._value_type(f"type of {key!r}")
        if kind is ValueType.STRING:
            return Field(key, kind, self._text(f"value of {key!r}"))
        if kind is ValueType.BOOL:
            return Field(key, kind, self._number("B", f"value of {key!r}") != 0)
        if kind is not ValueType.ARRAY:
            return Field(key, kind, self._number(CODES[kind], f"value of {key!r}"))
        item = self._value_type(f"item type of {key!r}")
        if item is ValueType.ARRAY:
            self._fail(f"{key!r} is an array of arrays")
        count = self._number("Q", f"length of {key!r}")
        left = self.size - self.at
        least = 8 if item is ValueType.STRING else struct.calcsize("<" + CODES[item])
        if count > MAX_LENGTH or count * least > left:
            self._fail(f"{key!r} has {count} items of at least {least} bytes, {left} are left")
        if item is ValueType.STRING:
            return Field(key, kind, self._texts(key, count), item)
        data = self._take(count * least, f"items of {key!r}")
        if item is ValueType.BOOL:
            return Field(key, kind, [byte != 0 for byte in data], item)
        return Field(key, kind, list(struct.unpack(f"<{count}{CODES[item]}", data)), item)

    def _value_type(self, what: str) -> ValueType:
        number = self._number("I", what)
        if number > ValueType.FLOAT64:
            self._fail(f"{what} is {number}, which is no value type")
        return ValueType(number)

    def _text(self, what: str) -> str:
        return self._string(what).decode("utf-8", "surrogateescape")

    def _texts(self, key: str, count: int) -> list[str]:
        """The strings of an array: a loop without calls, since vocabularies have 100 000s."""
        view, at, size = self.view, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        texts = []
        for index in range(count):
            if at + 8 > size:
                self._fail(f"item {index} of {key!r} lies behind the end of the file")
            end = at + 8 + unpack(view, at)[0]
            if end > size or end - at - 8 > MAX_LENGTH:
                self._fail(
                    f"item {index} of {key!r} has {end - at - 8} bytes, {size - at - 8} left"
                )
            texts.append(view[at + 8 : end].decode("utf-8", "surrogateescape"))
            at = end
        self.at = at
        return texts

    def _string(self, what: str) -> bytes:
        length = self._number("Q", f"length of {what}")
        if length > MAX_LENGTH:
            self._fail(f"{what} has {length} bytes; {MAX_LENGTH} are possible")
        return self._take(length, what)

    def _name(self, what: str) -> str:
        data = self._string(what)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"{what} {data[:64]!r} is no UTF-8")
        if "\0" in text:
            self._fail(f"{what} {text[:64]!r} holds a NUL")
        return text

    def _alignment(self) -> int:
        field = self.fields.get("general.alignment")
        if field is None:
            return DEFAULT_ALIGNMENT
        if field.type is not ValueType.UINT32:
            self._fail(f"general.alignment is {field.type.name}, not UINT32")
        value: int = field.value
        if value == 0 or value & (value - 1):
            self._fail(f"general.alignment is {value}, which is no power of two")
        return value

    def _entries(self, count: int) -> list[tuple[str, tuple[int, ...], str, int]]:
        names: set[str] = set()
        entries = []
        for _ in range(count):
            name = self._name("tensor name")
            if len(name.encode()) > MAX_NAME:
                self._fail(f"tensor name {name[:80]!r} has over {MAX_NAME} bytes")
            if name in names:
                self._fail(f"tensor {name!r} stands twice")
            names.add(name)
            n_dims = self._number("I", f"dimension count of {name!r}")
            if n_dims > MAX_DIMENSIONS:
                self._fail(f"{name}: {n_dims} dimensions; {MAX_DIMENSIONS} are possible")
            ne = struct.unpack(f"<{n_dims}q", self._take(8 * n_dims, f"dimensions of {name!r}"))
            if any(n < 0 for n in ne) or prod(ne) > INT64_MAX:
                self._fail(f"{name}: dimensions {list(ne)}")
            number = self._number("I", f"type of {name!r}")
            kind = type_names().get(number)
            if kind is None:
                self._fail(f"{name}: tensor type {number} is unknown")
            entries.append((name, ne, str(kind), self._number("Q", f"offset of {name!r}")))
        return entries

    def _placed(
        self, entries: list[tuple[str, tuple[int, ...], str, int]]
    ) -> dict[str, TensorInfo]:
        """Tensors follow each other without gaps, each padded; the last one's end must be there."""
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for name, ne, kind, offset in entries:
            if offset != expected:
                self._fail(f"{name}: data at offset {offset}, expected at {expected}")
            width, block = (ne[0] if ne else 1), type_sizes()[kind].block
            if width % block:
                self._fail(f"{name}: rows of {width} are no multiple of {block} ({kind})")
            info = TensorInfo(name, ne, kind, self.data_start + offset)
            if info.offset + info.nbytes > self.size:
                raise GGUFError(
                    f"{self.path}: truncated: {name} needs bytes up to "
                    f"{info.offset + info.nbytes}, the file has {self.size}; fetch it again"
                )
            tensors[name] = info
            expected = aligned(offset + info.nbytes, self.alignment)
        return tensors
