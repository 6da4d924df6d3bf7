"""Convert and quantise in one pass: plan every tensor, then read, compute and write them."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gpukit.errors import ArgumentError
from gpukit.events import Report, Warned, ignore
from gpukit.formats.gguf_fields import Field, TensorSpec, u32
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter, plan_layout
from gpukit.models.base import FILE_TYPE, float_type, with_file_type
from gpukit.models.importer import QUANTIZATION_VERSION, some
from gpukit.recipes.mixes import (
    FILE_TYPES,
    FileType,
    Overrides,
    by_name,
    choose_types,
    output_order,
)
from gpukit.recipes.pipeline import run_pipeline
from gpukit.recipes.source import CheckpointSource, Source, SourceTensor

VERSION_KEY = "general.quantization_version"
# File types that llama.cpp's converter writes itself, in its own order of tensors and metadata.
CONVERTED = ("F32", "F16", "BF16", "Q8_0")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class PlannedOutput:
    """One tensor on its way: its place in the source, what it is and what it becomes."""

    index: int
    spec: TensorSpec
    source_type: str


@dataclass(frozen=True)
class QuantizePlan:
    """Everything that will be written: metadata, tensors in file order, the size in bytes."""

    file_type: FileType
    title: str
    fields: tuple[Field, ...]
    outputs: tuple[PlannedOutput, ...]
    size: int

    @property
    def specs(self) -> list[TensorSpec]:
        return [output.spec for output in self.outputs]

    def totals(self) -> list["TypeTotal"]:
        return totals(self.specs)

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON-ready document; sizes in bytes."""
        return {
            "file_type": self.file_type.name,
            "size": self.size,
            "tensors": [
                {
                    "name": o.spec.name,
                    "shape": list(o.spec.ne),
                    "from": o.source_type,
                    "to": o.spec.type,
                    "nbytes": o.spec.nbytes,
                }
                for o in self.outputs
            ],
        }


@dataclass(frozen=True)
class TypeTotal:
    """Sums over the tensors of one type."""

    type: str
    tensors: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class QuantizeResult:
    """What was written: the file, its size in bytes, its sha256 if asked for, seconds it took."""

    path: Path
    size: int
    digest: str | None
    seconds: float
    weights: int
    read_bytes: int
    totals: tuple[TypeTotal, ...]


def totals(specs: Sequence[TensorSpec]) -> list[TypeTotal]:
    """Sums by type, largest first."""
    tensors: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for spec in specs:
        tensors[spec.type] += 1
        weights[spec.type] += spec.n_elements
        nbytes[spec.type] += spec.nbytes
    return [TypeTotal(t, tensors[t], weights[t], size) for t, size in nbytes.most_common()]


def plan_quantize(
    source: Source, file_type: str | None = None, overrides: Overrides | None = None
) -> QuantizePlan:
    """What `source` becomes as `file_type`; None keeps a checkpoint's own type (BF16 or F16).

    A folder to F32, F16, BF16 or Q8_0 gives the file of llama.cpp's converter, everything else that
    of llama-quantize. `ArgumentError` for an unknown type and for a source that is quantised.
    """
    if file_type is None and not isinstance(source, CheckpointSource):
        raise ArgumentError(f"{source.path}: name the type to convert to")
    chosen = by_name(file_type) if file_type else FILE_TYPES[_auto(source)]
    if source.is_checkpoint and chosen.name in CONVERTED and overrides is None:
        fields, outputs = _converted(source, chosen)
    else:
        fields, outputs = _quantized(source, chosen, overrides)
    _refuse_lossy(source, outputs)
    label = source.label
    same = label == chosen.name or (file_type is None)
    title = "converting model" if same else f"quantizing {label} model to {_shown(file_type)}"
    size = plan_layout(fields, [output.spec for output in outputs]).size
    return QuantizePlan(chosen, title, tuple(fields), tuple(outputs), size)


def _auto(source: Source) -> str:
    assert isinstance(source, CheckpointSource)
    return source.auto


def _shown(file_type: str | None) -> str:
    return (file_type or "").upper()


def _converted(source: Source, chosen: FileType) -> tuple[list[Field], list[PlannedOutput]]:
    outputs = [
        _output(source, index, tensor.ne, float_type(tensor.name, tensor.ne, chosen.default))
        for index, tensor in enumerate(source.tensors)
    ]
    return list(with_file_type(source.fields, chosen.number)), outputs


def _quantized(
    source: Source, chosen: FileType, overrides: Overrides | None
) -> tuple[list[Field], list[PlannedOutput]]:
    order = sorted(range(len(source.tensors)), key=lambda i: output_order(source.tensors[i].name))
    tensors = [source.tensors[index] for index in order]
    kinds = choose_types(tensors, source.get, chosen, overrides)
    outputs = [
        _output(source, index, _trimmed(tensor), kind)
        for index, tensor, kind in zip(order, tensors, kinds, strict=True)
    ]
    dropped = (VERSION_KEY, FILE_TYPE, "general.alignment")
    fields = [
        field
        for field in source.fields
        if field.key not in dropped and not field.key.startswith("split.")
    ]
    return [*fields, u32(VERSION_KEY, QUANTIZATION_VERSION), u32(FILE_TYPE, chosen.number)], outputs


def _output(source: Source, index: int, ne: tuple[int, ...], kind: str) -> PlannedOutput:
    spec = TensorSpec(source.tensors[index].name, ne, kind)
    return PlannedOutput(index, spec, source.stored_type(index))


def _trimmed(tensor: SourceTensor) -> tuple[int, ...]:
    """Dimensions without ones at the end, as llama-quantize writes them."""
    ne = tensor.ne
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return ne


def _refuse_lossy(source: Source, outputs: Sequence[PlannedOutput]) -> None:
    for output in outputs:
        if output.source_type not in FLOATS and output.source_type != output.spec.type:
            raise ArgumentError(
                f"{source.path}: {output.spec.name} is quantised already ({output.source_type}); "
                "start from the checkpoint or from an F16, BF16 or F32 GGUF"
            )


def run_plan(
    source: Source,
    plan: QuantizePlan,
    out: Path,
    *,
    device: str = "auto",
    budget: int = 4 << 30,
    digest: bool = False,
    report: Report = ignore,
) -> QuantizeResult:
    """Write the file that `plan` describes to `out`, whole or not at all.

    `budget` bounds the host memory of buffers, in bytes. `CheckpointError` for values that are not
    finite, `DiskError` where the disk refuses, and the errors of the source's reader.
    """
    _check_target(source, out)
    if source.left_out:
        report(Warned(f"{source.path}: left out: {some(source.left_out)} without use in a GGUF"))
    started = time.monotonic()
    with GGUFWriter(out, plan.fields, plan.specs, digest=digest) as writer:
        read_bytes = run_pipeline(source, plan.outputs, writer, plan.title, device, budget, report)
    with GGUFFile(out) as written:
        if len(written.tensors) != len(plan.outputs):
            raise AssertionError(f"{out}: {len(written.tensors)} of {len(plan.outputs)} tensors")
    return QuantizeResult(
        path=out,
        size=writer.size,
        digest=writer.digest,
        seconds=time.monotonic() - started,
        weights=sum(prod(spec.ne) for spec in plan.specs),
        read_bytes=read_bytes,
        totals=tuple(plan.totals()),
    )


def _check_target(source: Source, out: Path) -> None:
    if out.is_dir():
        raise ArgumentError(f"{out}: a folder; name the file to write")
    if not out.parent.is_dir():
        raise ArgumentError(f"{out}: there is no folder {out.parent}; make it first")
    if out.exists() and source.path.exists() and out.samefile(source.path):
        raise ArgumentError(f"{out}: input and output are the same file; write to another name")
