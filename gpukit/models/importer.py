"""Plans the import of a checkpoint: every tensor accounted for, metadata as llama.cpp writes it."""

import os
from collections.abc import Mapping, Sequence
from math import prod

from gpukit.errors import ArgumentError, CheckpointError, one_line
from gpukit.events import Event, Warned
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import QUANTIZATION_VERSION
from gpukit.formats.gguf_fields import u32
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.fp8 import Scales, find_scales
from gpukit.models.metadata import Parameters, general_fields
from gpukit.models.registry import Architecture, architecture_of_class
from gpukit.models.rules import ImportPlan, PlannedTensor, Rule

PRE = "tokenizer.ggml.pre"

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
    arch = architecture_of_class(checkpoint.config, str(checkpoint.folder / "config.json"))
    try:
        config = arch.read(checkpoint.config)
    except CheckpointError as error:  # begins with config.json; say which
        raise CheckpointError(f"{checkpoint.folder}{os.sep}{error}") from None
    told: list[Event] = []
    scales = find_scales(checkpoint)
    stored = _tensors(checkpoint, arch, arch.rules(config), scales)
    tensors = [*arch.computed(config), *stored]
    about, *general = general_fields(checkpoint.folder, arch.name, _parameters(tensors), name)
    fields = [
        about,  # general.architecture
        *arch.first_fields(config),
        *general,
        *arch.fields(config),
        u32("general.quantization_version", QUANTIZATION_VERSION),
        *arch.vocabulary(
            checkpoint.folder,
            {**checkpoint.config, "vocab_size": config.vocab_size},
            pre=pre,
            report=told.append,
        ),
    ]
    if pre is not None and not any(f.key == PRE and f.value == pre for f in fields):
        raise ArgumentError(
            f"{checkpoint.folder}: --pre {pre}: this vocabulary is no byte-level BPE; leave it out"
        )
    left_out = [tensor.name for tensor in checkpoint if arch.leaves_out(tensor.name)]
    return ImportPlan(
        config=config,
        fields=tuple(fields),
        tensors=tuple(tensors),
        scales=scales,
        left_out=(*left_out, *scales.unused),
        warnings=tuple(one_line(event.text) for event in told if isinstance(event, Warned)),
    )


def _parameters(tensors: Sequence[PlannedTensor]) -> Parameters:
    stacked = [tensor for tensor in tensors if len(tensor.sources) > 1]
    return Parameters(
        total=sum(tensor.n_elements for tensor in tensors),
        expert=sum(tensor.n_elements // len(tensor.sources) for tensor in stacked),
        experts=len(stacked[0].sources) if stacked else 0,
    )


def _tensors(
    checkpoint: Checkpoint, arch: Architecture, rules: Sequence[Rule], scales: Scales
) -> list[PlannedTensor]:
    """In the order of the checkpoint, as the converter reads it."""
    used: dict[str, StoredTensor] = {}
    for tensor in checkpoint:
        if tensor.name in scales or arch.leaves_out(tensor.name):
            continue
        name = arch.renamed(tensor.name)
        if name in used:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} and {used[name].name} are one tensor of "
                f"{arch.name}, {name}; remove one"
            )
        used[name] = tensor
    by_source = {source: rule for rule in rules for source in rule.sources}
    _check_names(checkpoint, arch, used, by_source)
    groups: dict[str, list[Rule]] = {}
    for rule in rules:
        groups.setdefault(rule.group or rule.name, []).append(rule)
    waiting = {name: sum(len(r.sources) for r in group) for name, group in groups.items()}
    planned = []
    for source, tensor in used.items():
        rule = by_source[source]
        _check_shape(tensor, rule)
        name = rule.group or rule.name
        waiting[name] -= 1
        if waiting[name] == 0:
            planned += [_planned(used, ready) for ready in groups[name]]
    return planned


def _planned(used: Mapping[str, StoredTensor], rule: Rule) -> PlannedTensor:
    parts = [used[source] for source in rule.sources]
    for part in parts:
        if part.dtype != parts[0].dtype:
            raise CheckpointError(
                f"{part.path}: {part.name} is {part.dtype}, {parts[0].name} is {parts[0].dtype}; "
                f"both belong to {rule.name}, which needs one dtype"
            )
    shape = (rule.stack, *rule.shape) if rule.stack else rule.shape
    return PlannedTensor(
        name=rule.name,
        ne=tuple(reversed(shape)),
        sources=tuple(part.name for part in parts),
        dtype=_dtype(parts[0]),
        row_group=rule.row_group,
        transform=rule.transform,
    )


def _check_names(
    checkpoint: Checkpoint,
    arch: Architecture,
    used: Mapping[str, StoredTensor],
    rules: Mapping[str, Rule],
) -> None:
    needed = [source for source, rule in rules.items() if rule.required]
    missing = [source for source in needed if source not in used]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder}: {some(missing)} missing of {len(needed)} that config.json asks "
            "for; fetch the folder again or mend config.json"
        )
    left = [tensor.name for source, tensor in used.items() if source not in rules]
    if left:
        raise CheckpointError(
            f"{checkpoint.folder}: {some(left)} unknown to {arch.name} with this config.json; "
            "nothing would use them"
        )


def some(names: Sequence[str]) -> str:
    """How many tensors, and the names of some of them."""
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
