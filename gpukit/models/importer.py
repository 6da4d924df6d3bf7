"""Plans the import of a checkpoint: every tensor accounted for, metadata as llama.cpp writes it."""

import os
from collections.abc import Mapping, Sequence
from math import prod

from gpukit.errors import ArgumentError, CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_fields import u32
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.base import Architecture, ImportPlan, PlannedTensor, Rule, by_class
from gpukit.models.fp8 import Scales, find_scales
from gpukit.models.metadata import general_fields

PRE = "tokenizer.ggml.pre"
# Of the block layouts (GGML_QNT_VERSION).
QUANTIZATION_VERSION = 2

# What the converter sees of each dtype; others need a dequantiser of their own.
DTYPES = {
    "BF16": "BF16", "F16": "F16", "F32": "F32", "F64": "F32", "F8_E4M3": "F32", "F8_E5M2": "F32",
}  # fmt: skip


def plan_import(
    checkpoint: Checkpoint, *, name: str | None = None, pre: str | None = None
) -> ImportPlan:
    """The GGUF that `checkpoint` becomes; `name` replaces general.name, `pre` names the
    pre-tokenizer of a byte-level BPE that is not recognised.

    `ArgumentError` for a `pre` that nobody knows or that the vocabulary has no use for,
    `CheckpointError` for an unknown architecture, for values in config.json that make no sense, for
    tensors that are missing, left over, of another shape or of an integer dtype.
    """
    from gpukit.tokenizer import vocabulary_fields

    arch = by_class(checkpoint.config, str(checkpoint.folder / "config.json"))
    try:
        config = arch.read(checkpoint.config)
    except CheckpointError as error:  # begins with config.json; say which
        raise CheckpointError(f"{checkpoint.folder}{os.sep}{error}") from None
    scales = find_scales(checkpoint)
    if config.n_layer > len(checkpoint.tensors):
        # What follows takes room for every layer.
        raise CheckpointError(
            f"{checkpoint.folder}: config.json asks for {config.n_layer} layers, the folder holds "
            f"{len(checkpoint.tensors)} tensors; fetch it again or mend config.json"
        )
    stored = _tensors(checkpoint, arch, arch.rules(config), scales)
    tensors = [*arch.computed(config), *stored]
    parameters = sum(tensor.n_elements for tensor in tensors)
    fields = [
        *general_fields(checkpoint.folder, arch.name, parameters, name),
        *arch.fields(config),
        u32("general.quantization_version", QUANTIZATION_VERSION),
        *vocabulary_fields(
            checkpoint.folder, {**checkpoint.config, "vocab_size": config.vocab_size}, pre=pre
        ),
    ]
    if pre is not None and not any(f.key == PRE and f.value == pre for f in fields):
        raise ArgumentError(
            f"{checkpoint.folder}: --pre {pre}: this vocabulary is no byte-level BPE; leave it out"
        )
    left_out = [t.name for t in checkpoint if t.name.endswith(arch.skipped)]
    return ImportPlan(config, tuple(fields), tuple(tensors), scales, (*left_out, *scales.unused))


def _tensors(
    checkpoint: Checkpoint, arch: Architecture, rules: Sequence[Rule], scales: Scales
) -> list[PlannedTensor]:
    """In the order of the checkpoint, as the converter reads it."""
    by_source = {rule.source: rule for rule in rules}
    weights = [t for t in checkpoint if t.name not in scales and not t.name.endswith(arch.skipped)]
    _check_names(checkpoint, weights, arch, by_source)
    planned = []
    for tensor in weights:
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


def _check_names(
    checkpoint: Checkpoint,
    weights: Sequence[StoredTensor],
    arch: Architecture,
    rules: Mapping[str, Rule],
) -> None:
    missing = [
        r.source for r in rules.values() if r.required and r.source not in checkpoint.tensors
    ]
    if missing:
        needed = sum(rule.required for rule in rules.values())
        raise CheckpointError(
            f"{checkpoint.folder}: {some(missing)} missing of {needed} that config.json asks "
            "for; fetch the folder again or mend config.json"
        )
    left = [tensor.name for tensor in weights if tensor.name not in rules]
    if left:
        raise CheckpointError(
            f"{checkpoint.folder}: {some(left)} unknown to {arch.name} with this config.json; "
            "nothing would use them"
        )


def some(names: Sequence[str]) -> str:
    """How many tensors, with the names of the first."""
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
