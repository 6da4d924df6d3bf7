"""The vocabulary of GGUF: value types, metadata fields, tensors and their sizes.

Source: the GGUF specification (ggml/docs/gguf.md); block sizes are those of the gguf package.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from math import prod
from typing import Any

from gpukit.errors import GGUFError

DEFAULT_ALIGNMENT = 32


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
INTEGERS = ("I8", "I16", "I32", "I64")


@cache
def type_sizes() -> dict[str, TypeSize]:
    """Every tensor type that the gguf package knows, by name."""
    from gguf.constants import GGML_QUANT_SIZES

    return {t.name: TypeSize(int(t), *size) for t, size in GGML_QUANT_SIZES.items()}


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
