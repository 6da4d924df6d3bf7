"""The vocabulary of GGUF: value types, metadata fields, tensors and their sizes.

Source: the GGUF specification (ggml/docs/gguf.md); types and their blocks: ggml.h, ggml-common.h.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from math import prod
from typing import Any

from gpukit.errors import GGUFError

DEFAULT_ALIGNMENT = 32
_LAYER = re.compile(r"blk\.(\d+)\.")


class ValueType(IntEnum):
    """The types of metadata values, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct codes of the types with a fixed size.
CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class Field:
    """One metadata entry; `item` is the type of an array's items, None for anything else."""

    key: str
    type: ValueType
    value: Any
    item: ValueType | None = None


def u16(key: str, value: int) -> Field:
    return Field(key, ValueType.UINT16, value)


def u32(key: str, value: int) -> Field:
    return Field(key, ValueType.UINT32, value)


def i32(key: str, value: int) -> Field:
    return Field(key, ValueType.INT32, value)


def u64(key: str, value: int) -> Field:
    return Field(key, ValueType.UINT64, value)


def f32(key: str, value: float) -> Field:
    return Field(key, ValueType.FLOAT32, value)


def boolean(key: str, value: bool) -> Field:
    return Field(key, ValueType.BOOL, value)


def string(key: str, value: str) -> Field:
    return Field(key, ValueType.STRING, value)


def array(key: str, item: ValueType, values: Iterable[Any]) -> Field:
    return Field(key, ValueType.ARRAY, list(values), item)


@dataclass(frozen=True)
class TypeSize:
    """A tensor type's number, the values in a block and the bytes of a block."""

    id: int
    block: int
    nbytes: int


# Types that hold every value by itself, those that weights have first.
FLOATS = ("F64", "F32", "F16", "BF16")
UNQUANTIZED = (*FLOATS, "I8", "I16", "I32", "I64")


# Every tensor type of ggml.h: number, values in a block, bytes of a block. The numbers that are
# missing stood for types that are gone, which llama.cpp refuses, too.
_SIZES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q8_1": (9, 32, 36),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "Q8_K": (15, 256, 292), "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18), "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136), "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4),
    "I64": (27, 1, 8), "F64": (28, 1, 8), "IQ1_M": (29, 256, 56), "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18),
}  # fmt: skip


@cache
def type_sizes() -> dict[str, TypeSize]:
    """Every tensor type that a GGUF can hold, by name."""
    return {name: TypeSize(*size) for name, size in _SIZES.items()}


@cache
def type_names() -> dict[int, str]:
    """Names of the tensor types by number."""
    return {size.id: name for name, size in type_sizes().items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: name, dimensions (row length first, as GGUF has them), type."""

    name: str
    ne: tuple[int, ...]
    type: str

    @property
    def n_elements(self) -> int:
        return prod(self.ne)

    @property
    def rows(self) -> int:
        return prod(self.ne[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; `GGUFError` where blocks do not divide it."""
        size = type_sizes()[self.type]
        width = self.ne[0] if self.ne else 1
        if width % size.block:
            raise GGUFError(
                f"{self.name}: rows of {width} are no multiple of {size.block} ({self.type})"
            )
        return width // size.block * size.nbytes

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.rows


@dataclass(frozen=True)
class TensorInfo(TensorSpec):
    """A tensor in a file; `offset` is its absolute position in bytes."""

    offset: int


def aligned(size: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `size`."""
    return -(-size // alignment) * alignment


def layer_of(name: str) -> int | None:
    """The layer that the tensor `name` belongs to, None for what is in none."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None
