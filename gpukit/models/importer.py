"""Plans the import of a checkpoint: every tensor accounted for, metadata as llama.cpp writes it."""

import os
from collections.abc import Mapping, Sequence
from math import prod

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import u32
from gpukit.formats.safetensors import Checkpoint, StoredTensor
from gpukit.models.base import Architecture, ImportPlan, PlannedTensor, Rule, by_class
from gpukit.models.metadata import general_fields

# Of the block layouts (GGML_QNT_VERSION).
QUANTIZATION_VERSION = 2

# What the converter sees of each dtype; others need a dequantiser of their own.
DTYPES = {"BF16": "BF16", "F16": "F16", "F32": "F32", "F64": "F32"}


def plan_import(checkpoint: Checkpoint, *, name: str | None = None) -> ImportPlan:
    """The GGUF that `checkpoint` becomes; `name` replaces general.name.

    `CheckpointError` for an unknown architecture, for values in config.json that make no sense, for
    tensors that are missing, left over, of another shape or of an integer dtype.
    """
    arch = by_class(checkpoint.config, str(checkpoint.folder / "config.json"))
    try:
        config = arch.read(checkpoint.config)
    except CheckpointError as error:  # begins with config.json; say which
        raise CheckpointError(f"{checkpoint.folder}{os.sep}{error}") from None
    tensors = [*arch.computed(config), *_tensors(checkpoint, arch, arch.rules(config))]
    parameters = sum(tensor.n_elements for tensor in tensors)
    fields = [
        *general_fields(checkpoint.folder, arch.name, parameters, name),
        *arch.fields(config),
        u32("general.quantization_version", QUANTIZATION_VERSION),
        *arch.vocabulary(checkpoint.folder, {**checkpoint.config, "vocab_size": config.vocab_size}),
    ]
    return ImportPlan(config, tuple(fields), tuple(tensors))


def _tensors(
    checkpoint: Checkpoint, arch: Architecture, rules: Sequence[Rule]
) -> list[PlannedTensor]:
    """In the order of the checkpoint, as the converter reads it."""
    by_source = {rule.source: rule for rule in rules}
    _check_names(checkpoint, arch, by_source)
    planned = []
    for tensor in checkpoint:
        if tensor.name.endswith(arch.skipped):
            continue
        rule = by_source[tensor.name]
        _check_shape(tensor, rule)
        planned.append(
            PlannedTensor(
                name=rule.name,
                ne=tuple(reversed(tensor.shape)),
                sources=(tensor.name,),
                dtype=_dtype(tensor),
                row_group=rule.row_group,
                transform=rule.transform,
            )
        )
    return planned


def _check_names(checkpoint: Checkpoint, arch: Architecture, rules: Mapping[str, Rule]) -> None:
    missing = [
        r.source for r in rules.values() if r.required and r.source not in checkpoint.tensors
    ]
    if missing:
        needed = sum(rule.required for rule in rules.values())
        raise CheckpointError(
            f"{checkpoint.folder}: {_some(missing)} missing of {needed} that config.json asks "
            "for; fetch the folder again or mend config.json"
        )
    left = [t.name for t in checkpoint if t.name not in rules and not t.name.endswith(arch.skipped)]
    if left:
        raise CheckpointError(
            f"{checkpoint.folder}: {_some(left)} unknown to {arch.name} with this config.json; "
            "nothing would use them"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"


def _check_shape(tensor: StoredTensor, rule: Rule) -> None:
    if tensor.shape == rule.shape:
        return
    raise CheckpointError(
        f"{tensor.path}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for "
        f"{list(rule.shape)}; fetch the folder again or mend config.json"
    )


def _dtype(tensor: StoredTensor) -> str:
    if tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} is {tensor.dtype} ({prod(tensor.shape)} values); "
            f"{', '.join(DTYPES)} can be imported: fetch the checkpoint in one of them"
        )
    return DTYPES[tensor.dtype]
