"""What is inside a GGUF file, as plain data for printing and for JSON."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.formats.gguf_fields import Field, TensorInfo, ValueType
from gpukit.formats.gguf_reader import GGUFFile


@dataclass(frozen=True)
class TypeTotal:
    """Sums over all tensors of one type."""

    type: str
    tensors: int
    elements: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class GGUFDescription:
    """Header, metadata and tensors of one file. `totals` are ordered by bytes, largest first."""

    path: Path
    size: int
    version: int
    alignment: int
    data_start: int
    fields: tuple[Field, ...]
    tensors: tuple[TensorInfo, ...]
    totals: tuple[TypeTotal, ...]

    @property
    def architecture(self) -> str | None:
        return next((str(f.value) for f in self.fields if f.key == "general.architecture"), None)

    @property
    def elements(self) -> int:
        return sum(total.elements for total in self.totals)

    @property
    def nbytes(self) -> int:
        return sum(total.nbytes for total in self.totals)

    def as_json(self) -> dict[str, Any]:
        """Everything, arrays in full, as one JSON-ready document; sizes in bytes."""
        return {
            "path": str(self.path),
            "size": self.size,
            "format": "gguf",
            "version": self.version,
            "alignment": self.alignment,
            "data_start": self.data_start,
            "architecture": self.architecture,
            "parameters": self.elements,
            "metadata": {
                f.key: {"type": type_name(f), "value": _plain(f.value)} for f in self.fields
            },
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.ne),
                    "type": t.type,
                    "offset": t.offset,
                    "nbytes": t.nbytes,
                }
                for t in self.tensors
            ],
            "types": {
                t.type: {"tensors": t.tensors, "elements": t.elements, "nbytes": t.nbytes}
                for t in self.totals
            },
        }


def describe_gguf(path: Path) -> GGUFDescription:
    """The description of the GGUF at `path`; `GGUFError` where it is malformed."""
    with GGUFFile(path) as file:
        tensors = tuple(file.tensors.values())
        return GGUFDescription(
            path=path,
            size=path.stat().st_size,
            version=file.version,
            alignment=file.alignment,
            data_start=file.data_start,
            fields=tuple(file.fields.values()),
            tensors=tensors,
            totals=_totals(tensors),
        )


def type_name(field: Field) -> str:
    """The field's type as GGUF spells it: `u32`, `str`, `arr[str]`."""
    if field.type is ValueType.ARRAY:
        return f"arr[{_SHORT[field.item]}]" if field.item is not None else "arr"
    return _SHORT[field.type]


_SHORT = {
    ValueType.UINT8: "u8",
    ValueType.INT8: "i8",
    ValueType.UINT16: "u16",
    ValueType.INT16: "i16",
    ValueType.UINT32: "u32",
    ValueType.INT32: "i32",
    ValueType.FLOAT32: "f32",
    ValueType.BOOL: "bool",
    ValueType.STRING: "str",
    ValueType.ARRAY: "arr",
    ValueType.UINT64: "u64",
    ValueType.INT64: "i64",
    ValueType.FLOAT64: "f64",
}


def _totals(tensors: tuple[TensorInfo, ...]) -> tuple[TypeTotal, ...]:
    count: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for tensor in tensors:
        count[tensor.type] += 1
        elements[tensor.type] += tensor.n_elements
        nbytes[tensor.type] += tensor.nbytes
    return tuple(
        TypeTotal(name, count[name], elements[name], size) for name, size in nbytes.most_common()
    )


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
