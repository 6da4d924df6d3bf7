"""Writes GGUF files: the layout is planned first, then data goes to known places in any order.

The file is version 3, little endian, with the header that the gguf package would write for the same
fields and tensors. It appears under its name only when every byte is there (see `atomic`).
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpukit.errors import GGUFError
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
from gpukit.formats.placed_writer import Layout, PlacedWriter

VERSION = 3


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
        out += _text(field.key) + struct.pack("<I", field.type) + value_bytes(field)
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


def value_bytes(field: Field) -> bytes:
    """The value of `field` as it stands in a file; `GGUFError` where it is none of its type."""
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


class GGUFWriter(PlacedWriter):
    """One GGUF file being written; see `PlacedWriter`."""

    incomplete = GGUFError

    def __init__(
        self,
        path: Path,
        fields: Iterable[Field],
        tensors: Sequence[TensorSpec],
        *,
        alignment: int = DEFAULT_ALIGNMENT,
        digest: bool = False,
    ) -> None:
        super().__init__(path, tensors, plan_layout(fields, tensors, alignment), digest=digest)
