"""The file of a GGUF LoRA adapter: its metadata, its tensors, and how they are written."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.adapters.adapter import Adapter
from gpukit.adapters.gguf import ALORA, ALPHA
from gpukit.adapters.target import Target
from gpukit.adapters.writing import Pair, PairPlan, plan_pairs
from gpukit.errors import AdapterError
from gpukit.formats.file_types import QUANTIZATION_VERSION
from gpukit.formats.gguf_fields import (
    Field,
    TensorSpec,
    ValueType,
    array,
    f32,
    string,
    type_sizes,
    u32,
)
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter, plan_layout
from gpukit.models.metadata import adapter_fields

TYPES = ("F32", "F16", "BF16", "Q8_0")
# What a row is kept in that no blocks fill.
INSTEAD = "F16"
FOLDED = "gpukit.adapter.folded"


@dataclass(frozen=True)
class AdapterFile:
    """A GGUF adapter to be: what it holds, its metadata, and two tensors for each pair of `plan`.

    The adapter that it is made of must be open as long as it is to be written.
    """

    plan: PairPlan
    fields: tuple[Field, ...]
    specs: tuple[TensorSpec, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return plan_layout(self.fields, self.specs).size

    def write(self, path: Path, *, digest: bool = False) -> GGUFWriter:
        """The writer that has made `path`, whole, with its sha256 if it was asked for.

        `AdapterError` for numbers that are not finite, or too large for their type.
        """
        with GGUFWriter(path, self.fields, self.specs, digest=digest) as writer:
            for number, pair in enumerate(self.plan.pairs):
                for at, values in enumerate(pair.read(self.plan.alpha), 2 * number):
                    writer.write(at, _encoded(values, self.specs[at]))
        return writer


def plan_file(adapter: Adapter, target: Target, kind: str = "F32") -> AdapterFile:
    """The GGUF that `adapter` of `target` becomes, its numbers in `kind`, one of `TYPES`.

    `AdapterError` names what no GGUF adapter can hold, and the remedy.
    """
    plan = plan_pairs(adapter, target.tensors, target.shapes)
    fields = _fields(adapter, target.architecture, plan)
    specs = (spec for pair in plan.pairs for spec in _specs(pair, kind))
    return AdapterFile(plan, tuple(fields), tuple(specs))


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
    fields.append(f32(ALPHA, plan.alpha))
    if adapter.invocation:
        fields.append(array(ALORA, ValueType.UINT32, adapter.invocation))
    fields.append(u32("general.quantization_version", QUANTIZATION_VERSION))
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


def _encoded(values: Tensor, spec: TensorSpec) -> memoryview:
    """The bytes of `values`; `AdapterError` where they are too large for the type."""
    if spec.type == "F16" and not torch.isfinite(values.half()).all():
        raise AdapterError(
            f"{spec.name}: {values.abs().max().item():g} is more than F16 holds; choose F32 or BF16"
        )
    data = kernels.quantize(values.reshape(-1, values.shape[-1]), spec.type)
    return data.contiguous().numpy().data
