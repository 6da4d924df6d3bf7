"""Parses what stands before the data of a GGUF file, and refuses what is malformed before
allocating for it.

Every count is compared with the bytes that are left, so memory stays below a small multiple of the
header's own size whatever it claims. The rules are those of llama.cpp's gguf.cpp; names that are no
valid UTF-8 or hold a NUL are refused too, since C programs would see another name.
"""

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any

from gpukit.errors import GGUFError
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

MAGIC = b"GGUF"
MAX_LENGTH = 1 << 30  # of a string in bytes, of an array in items
MAX_NAME = 63
MAX_DIMENSIONS = 4
INT64_MAX = (1 << 63) - 1
# A key is at least a length and a type, a tensor's entry a length, a count, a type and an offset.
MIN_FIELD_BYTES = 13
MIN_TENSOR_BYTES = 24


class Header:
    """Header, metadata and tensor list of a mapped file; `GGUFError` for anything malformed.

    Without `whole` only what stands before the data is there.
    """

    def __init__(self, view: mmap.mmap | bytes, path: Path, *, whole: bool = True) -> None:
        self.view = view
        self._whole = whole
        self.path = path
        self.size = len(view)
        self.at = 0
        n_tensors, n_fields = self._start()
        self.fields = self._fields(n_fields)
        self.alignment = self._alignment()
        entries = self._entries(n_tensors)
        self.data_start = aligned(self.at, self.alignment)
        if whole and n_tensors and self.data_start > self.size:
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
            if self._whole and info.offset + info.nbytes > self.size:
                raise GGUFError(
                    f"{self.path}: truncated: {name} needs bytes up to "
                    f"{info.offset + info.nbytes}, the file has {self.size}; fetch it again"
                )
            tensors[name] = info
            expected = aligned(offset + info.nbytes, self.alignment)
        return tensors
