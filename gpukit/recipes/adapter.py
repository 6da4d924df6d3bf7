"""A GGUF LoRA adapter from one of PEFT, mlx-lm or llama.cpp, beside a model that stays as it is."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.copies import without_copies
from gpukit.adapters.experts import Layout
from gpukit.adapters.gguf import ALPHA, gguf_base
from gpukit.adapters.moved import Made
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.writing import Pair, PairPlan, plan_pairs
from gpukit.errors import AdapterError, ArgumentError
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import QUANTIZATION_VERSION
from gpukit.formats.gguf_fields import Field, TensorSpec, f32, string, type_sizes, u32
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import GGUFModel
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.outputs import check_output
from gpukit.models.importer import plan_tensors
from gpukit.models.metadata import adapter_fields
from gpukit.recipes.references import adapter_path, locate
from gpukit.sources.opening import check_whole

TYPES = ("F32", "F16", "BF16", "Q8_0")
# What a row is kept in that no blocks fill.
INSTEAD = "F16"
FOLDED = "gpukit.adapter.folded"


@dataclass(frozen=True)
class AdapterResult:
    """What was written: the file and its size in bytes, the architecture that it is for, alpha, the
    ranks of its pairs, how many there are and of how many the scale went into B, the tensors of
    each type, and what there was to warn of."""

    path: Path
    size: int
    architecture: str
    alpha: float
    ranks: tuple[int, ...]
    pairs: int
    folded: int
    types: Mapping[str, int]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; the size in bytes."""
        return {
            "path": str(self.path),
            "size": self.size,
            "architecture": self.architecture,
            "alpha": self.alpha,
            "ranks": list(self.ranks),
            "pairs": self.pairs,
            "folded": self.folded,
            "types": dict(self.types),
            "warnings": list(self.warnings),
        }


def write_adapter(
    adapter: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    type: str = "F32",
    hub: bool = False,
    strict: bool = False,
    layout: str | None = None,
    report: Report = ignore,
) -> AdapterResult:
    """Write `adapter` as a GGUF LoRA adapter for `base`, whole or not at all.

    `adapter` is a folder of PEFT or mlx-lm, the file of weights in one, a GGUF adapter, or an id of
    the hub (hf.co/org/name). `base` is any word for a model, with `hub` an id of the hub; of its
    weights only those are read that the adapter has a copy of. `type` is F32, F16, BF16 or Q8_0;
    rows that no block of Q8_0 divides stay F16. With `strict` an adapter that names another base is
    refused; `layout` tells how the tensors of experts lie where that cannot be seen (peft,
    peft-0.18, unsloth). `report` hears warnings.
    The file is what llama.cpp's converter writes, with every scale right: what is not alpha / rank
    is multiplied into B, and then the key gpukit.adapter.folded says so.
    `AdapterError` for what no GGUF adapter can hold (DoRA, whole tensors, biases, tokens) and for
    an adapter of another base, `ArgumentError`, NotFoundError and DiskError as `convert`.

    gpukit.write_adapter("my-lora", "llama", "my-lora.gguf")
    """
    kind, lying, out = _type(type), _layout(layout), Path(out)
    check_output(out)
    place = locate(base, hub=hub)
    path = adapter_path(adapter, report=report)
    with (
        _opened(place.fetch(report)) as to,
        open_adapter(path, to.base, layout=lying, strict=strict) as opened,
    ):
        found = without_copies(opened, to.base, to.checkpoint)
        check_output(out, [found.file.path, *to.files])
        for line in found.warnings:
            report(Warned(line))
        plan = plan_pairs(found, to.tensors, to.shapes)
        fields = _fields(found, to.architecture, plan)
        report(Status(f"writing {out}"))
        specs = [spec for pair in plan.pairs for spec in _specs(pair, kind)]
        with GGUFWriter(out, fields, specs) as writer:
            _write(writer, plan, specs)
    return AdapterResult(
        path=out,
        size=writer.size,
        architecture=to.architecture,
        alpha=plan.alpha,
        ranks=plan.ranks,
        pairs=len(plan.pairs),
        folded=plan.folded,
        types=Counter(spec.type for spec in specs),
        warnings=found.warnings,
    )


def _type(name: str) -> str:
    if name.upper() not in TYPES:
        raise ArgumentError(f"unknown type {name[:40]!r} of an adapter; known: {', '.join(TYPES)}")
    return name.upper()


def _layout(name: str | None) -> Layout | None:
    known = {layout.value: layout for layout in Layout}
    if name is not None and name not in known:
        raise ArgumentError(f"unknown layout {name[:40]!r} of experts; known: {', '.join(known)}")
    return known[name] if name is not None else None


@dataclass(frozen=True)
class _To:
    """The model that an adapter is for: as a base, and as the GGUF that it is or becomes."""

    base: Base
    architecture: str
    tensors: Sequence[Made]
    shapes: Mapping[str, tuple[int, ...]]
    files: tuple[Path, ...]
    checkpoint: Checkpoint | None = None


@contextmanager
def _opened(path: Path) -> Iterator[_To]:
    if path.is_dir():
        with Checkpoint(path) as checkpoint:
            name, tensors = plan_tensors(checkpoint)
            shapes = {tensor.name: tuple(reversed(tensor.ne)) for tensor in tensors}
            files = tuple(checkpoint.files)
            yield _To(Base.of(checkpoint), name, tensors, shapes, files, checkpoint)
        return
    check_whole(path)
    with GGUFModel(path) as model:
        if model.get("general.type") == "adapter":
            raise ArgumentError(f"{path}: an adapter; its base is the model that it was made for")
        base = gguf_base(model)
        shapes = {rule.name: rule.full_shape for rule in base.rules}
        name = str(model.get("general.architecture"))
        yield _To(base, name, base.rules, shapes, model.paths)


def _fields(adapter: Adapter, architecture: str, plan: PairPlan) -> list[Field]:
    """The metadata in the converter's order; of a GGUF what it says of itself."""
    file = adapter.file.file
    if isinstance(file, GGUFFile):
        said = [f for key, f in file.fields.items() if key.startswith("general.")]
        head = ("general.architecture", "general.type", "general.quantization_version")
        about = [f for f in said if f.key not in (*head, "general.alignment")]
        first = [string(head[0], architecture), string(head[1], "adapter")]
        fields = [*first, string("adapter.type", "lora"), *about]
    else:
        # As the converter counts them.
        shapes = [pair.shapes for pair in plan.pairs]
        weights = sum(prod(b[:-1]) * a[-1] for a, b in shapes)
        fields = adapter_fields(adapter.file.path.parent, architecture, weights)
    fields += [
        f32(ALPHA, plan.alpha),
        u32("general.quantization_version", QUANTIZATION_VERSION),
    ]
    if plan.folded:
        fields.append(
            string(FOLDED, f"the scales of {plan.folded} of {len(plan.pairs)} pairs are in lora_b")
        )
    return fields


def _specs(pair: Pair, kind: str) -> Iterator[TensorSpec]:
    block = type_sizes()[kind].block
    for end, shape in zip(("lora_a", "lora_b"), pair.shapes, strict=True):
        fits = shape[-1] % block == 0
        yield TensorSpec(f"{pair.name}.{end}", shape[::-1], kind if fits else INSTEAD)


def _write(writer: GGUFWriter, plan: PairPlan, specs: Sequence[TensorSpec]) -> None:
    for number, pair in enumerate(plan.pairs):
        for at, values in enumerate(pair.read(plan.alpha), 2 * number):
            writer.write(at, _encoded(values, specs[at]))


def _encoded(values: Tensor, spec: TensorSpec) -> memoryview:
    """The bytes of `values`; `AdapterError` where they are too large for the type."""
    if spec.type == "F16" and not torch.isfinite(values.half()).all():
        raise AdapterError(
            f"{spec.name}: {values.abs().max().item():g} is more than F16 holds; choose F32 or BF16"
        )
    data = kernels.quantize(values.reshape(-1, values.shape[-1]), spec.type)
    return data.contiguous().numpy().data
