"""Takes what the gguf package's builders write (model card, special tokens) as our fields."""

import logging
from typing import Any

from gpukit.formats.gguf_fields import Field, ValueType


def recorder(arch: str) -> Any:
    """A `gguf.GGUFWriter` that has no file: its `add_*` calls are kept, see `recorded`."""
    from gguf import GGUFWriter

    # The package logs what it meets in a folder; without a handler Python would print that.
    logging.getLogger("gguf").addHandler(logging.NullHandler())
    return GGUFWriter(None, arch)


def recorded(writer: Any) -> list[Field]:
    """The fields that were added to `writer`, in the order of their first addition."""
    fields = []
    for key, entry in writer.kv_data[0].items():
        kind = ValueType(int(entry.type))
        item = None
        if kind is ValueType.ARRAY:
            item = ValueType(int(entry.sub_type)) if entry.sub_type else _item(entry.value)
        fields.append(Field(key, kind, entry.value, item))
    return fields


def _item(values: Any) -> ValueType:
    from gguf import GGUFValueType

    return ValueType(int(GGUFValueType.get_type(values[0])))
