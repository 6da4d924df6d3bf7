"""What is inside a GGUF, a file of weights or a model folder: plain data to print or for JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.errors import ArgumentError, GpukitError, NotFoundError
from gpukit.events import Report, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import file_type_name
from gpukit.formats.gguf_fields import Field, ValueType
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import GGUFModel
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile, StoredTensor
from gpukit.planning.totals import TypeTotal, type_totals
from gpukit.recipes.references import locate
from gpukit.sources.opening import PRE_FOR_FOLDERS
from gpukit.tokenizer.summary import TokenizerSummary, summarise

if TYPE_CHECKING:
    from gpukit.models.rules import ImportPlan

TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Entry:
    """One line of metadata: `type` as GGUF spells it (`u32`, `arr[str]`) or `json`."""

    key: str
    type: str
    value: Any


@dataclass(frozen=True)
class Tensor:
    """One tensor; `shape` in the order of its file: GGUF begins with the row's width, others end
    with it. `type` is GGUF's or safetensors' name, `nbytes` without padding."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    offset: int | None = None

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Inspection:
    """A model or a part of one. `size` is that of all `files` together, in bytes; `details` are
    facts of the format; `file_type` is that of a GGUF, such as Q4_K_M; `problem` says why a folder
    cannot be converted, `name` what messages call it: a model of the store by its name."""

    path: Path
    format: str
    files: tuple[Path, ...]
    architecture: str | None
    metadata: tuple[Entry, ...]
    tensors: tuple[Tensor, ...]
    details: Mapping[str, int] = field(default_factory=dict)
    tokenizer: TokenizerSummary | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    problem: str | None = None
    file_type: str | None = None
    name: str = ""

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def elements(self) -> int:
        """Weights, those without use in a GGUF not counted."""
        return sum(tensor.n_elements for tensor in self.tensors if tensor.name not in self.left_out)

    @property
    def totals(self) -> tuple[TypeTotal, ...]:
        """By type, the largest first."""
        return tuple(type_totals(self.tensors))

    def as_json(self) -> dict[str, Any]:
        """Everything, arrays in full, as one JSON-ready document; sizes in bytes."""
        return {
            "path": str(self.path),
            "size": self.size,
            "format": self.format,
            "files": [str(path) for path in self.files],
            **self.details,
            "architecture": self.architecture,
            "file_type": self.file_type,
            "parameters": self.elements,
            "metadata": {e.key: {"type": e.type, "value": _plain(e.value)} for e in self.metadata},
            "tokenizer": self.tokenizer.as_json() if self.tokenizer else None,
            "chat_templates": dict(self.chat_templates),
            "tensors": [_tensor_json(tensor) for tensor in self.tensors],
            "types": {
                row.type: {"tensors": row.tensors, "elements": row.weights, "nbytes": row.nbytes}
                for row in self.totals
            },
            "left_out": list(self.left_out),
            "problem": self.problem,
        }


def inspect(
    model: str | Path, *, pre: str | None = None, hub: bool = False, report: Report = ignore
) -> Inspection:
    """What is inside a model or a file of weights: metadata, tensors, vocabulary, sizes.

    `model` is a GGUF, a .safetensors, .bin or .pth file, a folder, a name in the store, or an id of
    the hub (hf.co/org/name, or with `hub` org/name). Errors as those of `describe`, and HubError.

        found = gpukit.inspect("llama.gguf")
        print(found.architecture, found.elements, [tensor.name for tensor in found.tensors])
    """
    reference = locate(model, hub=hub)
    path = reference.fetch(report)
    return replace(describe(path, pre), name=reference.called(path))


def describe(path: Path, pre: str | None = None) -> Inspection:
    """The description of the GGUF, the .safetensors, .bin or .pth file or the folder at `path`.

    `pre` names the pre-tokenizer of a folder with a byte-level BPE. NotFoundError where there is
    nothing, `ArgumentError` for a `pre` that nothing asks for, the errors of the readers for what
    is malformed.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return _folder(path, pre)
    if pre is not None:
        raise ArgumentError(f"{path}: {PRE_FOR_FOLDERS}")
    if path.suffix == ".safetensors":
        with SafetensorsFile(path) as file:
            texts = [Entry(key, "str", value) for key, value in file.metadata.items()]
            return _weights(path, "safetensors", file.tensors.values(), texts)
    if path.suffix in (".bin", ".pth"):
        with PytorchFile(path) as pickled:
            return _weights(path, "pytorch", pickled.tensors.values())
    return _gguf(path)


def _gguf(path: Path) -> Inspection:
    with GGUFFile(path) as first:
        details = {
            "version": first.version, "alignment": first.alignment, "data_start": first.data_start,
        }  # fmt: skip
    with GGUFModel(path) as model:
        return Inspection(
            path=path,
            format="gguf",
            files=model.paths,
            architecture=_text(model.get("general.architecture")),
            metadata=tuple(Entry(f.key, type_name(f), f.value) for f in model.fields.values()),
            tensors=tuple(
                Tensor(info.name, info.ne, info.type, info.nbytes, info.offset)
                for info in model.tensors.values()
            ),
            details=details,
            tokenizer=summarise(model.fields),
            chat_templates=_templates(model.fields),
            file_type=_file_type(model.get("general.file_type")),
        )


def _file_type(number: Any) -> str | None:
    if number is None:
        return None
    return file_type_name(number) if number else "F32"


def _weights(
    path: Path, kind: str, tensors: Iterable[StoredTensor], metadata: Iterable[Entry] = ()
) -> Inspection:
    found = tuple(map(_stored, tensors))
    return Inspection(path, kind, (path,), None, tuple(metadata), found)


def _folder(path: Path, pre: str | None) -> Inspection:
    """A checkpoint as it is, with the vocabulary that its GGUF would have."""
    with Checkpoint(path) as checkpoint:
        plan, problem = _plan(checkpoint, pre)
        classes = checkpoint.config.get("architectures")
        fields = {f.key: f for f in plan.fields} if plan else {}
        return Inspection(
            path=path,
            format="checkpoint",
            files=tuple(checkpoint.files),
            architecture=_text(classes[0]) if isinstance(classes, list) and classes else None,
            metadata=tuple(Entry(k, "json", value) for k, value in checkpoint.config.items()),
            tensors=tuple(map(_stored, checkpoint)),
            tokenizer=summarise(fields),
            chat_templates=_templates(fields),
            left_out=(*plan.left_out, *_scales(plan)) if plan else (),
            problem=problem,
        )


def _plan(checkpoint: Checkpoint, pre: str | None) -> "tuple[ImportPlan | None, str | None]":
    from gpukit.models.importer import plan_import

    try:
        return plan_import(checkpoint, pre=pre), None
    except ArgumentError:  # of `pre`, not of the folder
        raise
    except GpukitError as error:
        return None, str(error)


def _scales(plan: "ImportPlan") -> Iterable[str]:
    return (scale.tensor.name for scale in plan.scales.by_weight.values())


def _stored(tensor: StoredTensor) -> Tensor:
    return Tensor(tensor.name, tensor.shape, tensor.dtype, tensor.nbytes)


def _templates(fields: Mapping[str, Field]) -> dict[str, str]:
    """Chat templates by name, the main one as "default"."""
    found = {}
    for key, entry in fields.items():
        if key.startswith(TEMPLATE) and isinstance(entry.value, str):
            found[key.removeprefix(TEMPLATE).removeprefix(".") or "default"] = entry.value
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


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


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    found = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "type": tensor.type,
        "nbytes": tensor.nbytes,
    }
    return found if tensor.offset is None else {**found, "offset": tensor.offset}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
