"""Plans the import of a checkpoint: every tensor accounted for, metadata as llama.cpp writes it."""

from collections.abc import Container, Mapping, Sequence
from math import prod

from gpukit.errors import ArgumentError, CheckpointError, one_line
from gpukit.events import Event, Warned, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import QUANTIZATION_VERSION
from gpukit.formats.gguf_fields import u32
from gpukit.formats.safetensors import StoredTensor
from gpukit.models import nextn
from gpukit.models.carried_blocks import carried, precision_fields
from gpukit.models.config import ModelConfig
from gpukit.models.fp8 import Scales, find_scales
from gpukit.models.metadata import Parameters, general_fields
from gpukit.models.packed import NVFP4, PackedWeights, find_packed
from gpukit.models.registry import Architecture, architecture_of_class
from gpukit.models.rules import ImportPlan, PlannedTensor, Rule, Span
from gpukit.models.values import of_folder, section
from gpukit.models.views import CARRIED, View, with_views

PRE = "tokenizer.ggml.pre"
# What transformers puts before the names of everything but the head.
BASE = "model."

# What the converter sees of each dtype; others need a dequantiser of their own.
DTYPES = {
    "BF16": "BF16", "F16": "F16", "F32": "F32", "F64": "F32", "F8_E4M3": "F32", "F8_E5M2": "F32",
}  # fmt: skip


def plan_import(
    checkpoint: Checkpoint,
    *,
    name: str | None = None,
    pre: str | None = None,
    mtp: bool | None = None,
) -> ImportPlan:
    """The GGUF that `checkpoint` becomes; `name` replaces general.name, `pre` names the
    pre-tokenizer of a byte-level BPE that is not recognised, `mtp` says which layers there are, as
    `nextn.chosen` has it.

    `ArgumentError` for a `pre` that nobody knows or that the vocabulary has no use for,
    `CheckpointError` for an unknown architecture, for values in config.json that make no sense, for
    tensors that are missing, left over, of another shape or of an integer dtype.
    """
    arch, config = _read(checkpoint)
    told: list[Event] = []
    packed = find_packed(checkpoint)
    scales = find_scales(checkpoint, told.append, packed)
    config, rules, passed = nextn.chosen(config, arch.rules(config), mtp)
    stored, views = _stored(checkpoint, arch, rules, scales, packed, passed)
    if mtp and not any(config.unused.guesses(tensor.name) for tensor in stored):
        raise CheckpointError(
            f"{checkpoint.folder}: no layers that guess further tokens; leave --mtp out"
        )
    tensors = [*arch.computed(config), *stored]
    about, *general = general_fields(checkpoint.folder, arch.name, _parameters(tensors), name)
    fields = [
        about,  # general.architecture
        *arch.first_fields(config),
        *general,
        *arch.fields(config),
        *arch.folder_fields(checkpoint.folder),
        u32("general.quantization_version", QUANTIZATION_VERSION),
        *precision_fields(section(checkpoint.config, "quantization_config"), stored),
        *arch.vocabulary(
            checkpoint.vocabulary_folder,
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
        views=views,
        factors={name: found.scale for name, found in packed.factors.items()},
        left_out=(*left_out, *scales.unused),
        warnings=tuple(one_line(event.text) for event in told if isinstance(event, Warned)),
    )


def plan_tensors(checkpoint: Checkpoint) -> tuple[str, list[PlannedTensor]]:
    """The architecture and the tensors of the GGUF that `checkpoint` becomes, without those that no
    checkpoint holds: nothing but config.json and the headers of the weights is read, and errors are
    those of `plan_import`."""
    arch, config = _read(checkpoint)
    packed = find_packed(checkpoint)
    scales = find_scales(checkpoint, ignore, packed)
    return arch.name, _stored(checkpoint, arch, arch.rules(config), scales, packed)[0]


def _stored(
    checkpoint: Checkpoint,
    arch: Architecture,
    rules: Sequence[Rule],
    scales: Scales,
    packed: PackedWeights,
    passed: Container[str] = (),
) -> tuple[list[PlannedTensor], dict[str, View]]:
    """What comes of the checkpoint's tensors, and the views that it is made of, by name."""
    read = _read_tensors(checkpoint, arch, scales)
    names = {tensor.name for tensor in read}
    own = [view for view in packed.views if view.sources[-1].name in names]
    views = [*arch.views([tensor for tensor in read if tensor.name not in packed]), *own]
    planned = _tensors(checkpoint, arch, rules, read, views, passed)
    found = {view.tensor.name: view for view in views}
    with of_folder(checkpoint.folder):
        return carried(planned, found, packed.factors, checkpoint.config)


def _read(checkpoint: Checkpoint) -> tuple[Architecture, ModelConfig]:
    arch = architecture_of_class(checkpoint.config, str(checkpoint.folder / "config.json"))
    with of_folder(checkpoint.folder):
        return arch, arch.read(checkpoint.config)


def _parameters(tensors: Sequence[PlannedTensor]) -> Parameters:
    stacked = [tensor for tensor in tensors if len(tensor.ne) > 2]
    return Parameters(
        total=sum(tensor.n_elements for tensor in tensors),
        expert=sum(prod(tensor.ne[:2]) for tensor in stacked),
        experts=stacked[0].ne[2] if stacked else 0,
    )


def _read_tensors(checkpoint: Checkpoint, arch: Architecture, scales: Scales) -> list[StoredTensor]:
    return [t for t in checkpoint if t.name not in scales and not arch.leaves_out(t.name)]


def _tensors(
    checkpoint: Checkpoint,
    arch: Architecture,
    rules: Sequence[Rule],
    tensors: Sequence[StoredTensor],
    views: Sequence[View],
    passed: Container[str] = (),
) -> list[PlannedTensor]:
    """In the order of the checkpoint, as the converter reads it, without what is `passed` over;
    blocks that it carries over come before all others."""
    known = {source for rule in rules for source in rule.sources}
    read = list(with_views(tensors, views))
    names = _names([arch.renamed(tensor.name) for tensor in read], known)
    used: dict[str, StoredTensor] = {}
    for name, tensor in zip(names, read, strict=True):
        if name in passed:
            continue
        if name in used:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} and {used[name].name} are one tensor of "
                f"{arch.name}, {name}; remove one"
            )
        used[name] = tensor
    rules = _chosen(rules, used)
    _check_names(checkpoint, arch, used, rules)
    planned = _in_order(used, [rule for rule in rules if rule.sources[0] in used])
    return sorted(planned, key=lambda tensor: tensor.dtype not in CARRIED)


def _in_order(used: Mapping[str, StoredTensor], rules: Sequence[Rule]) -> list[PlannedTensor]:
    """What `rules` make, each group where the last tensor that it waits for is read."""
    groups: dict[str, list[Rule]] = {}
    for rule in rules:
        # What is in blocks waits for nothing else.
        alone = all(used[source].dtype == NVFP4 for source in rule.sources)
        groups.setdefault(rule.name if alone else rule.group or rule.name, []).append(rule)
    # What each group waits for; one source may belong to several.
    waiting = {name: {s for r in group for s in r.sources} for name, group in groups.items()}
    waiters: dict[str, list[str]] = {}
    for name, sources in waiting.items():
        for source in sources:
            waiters.setdefault(source, []).append(name)
    planned = []
    for source in used:
        for name in waiters[source]:
            waiting[name].remove(source)
            if not waiting[name]:
                planned += [_planned(used, ready) for ready in groups[name]]
    return planned


def _chosen(rules: Sequence[Rule], used: Container[str]) -> list[Rule]:
    """Of the rules for one name the first whose sources are all there, else the first."""
    by_name: dict[str, list[Rule]] = {}
    for rule in rules:
        by_name.setdefault(rule.name, []).append(rule)
    return [
        next((r for r in same if all(s in used for s in r.sources)), same[0])
        for same in by_name.values()
    ]


def _names(names: Sequence[str], known: Container[str]) -> list[str]:
    """`names` as those of a model with a head; a checkpoint of its base class has the same without
    a prefix."""
    if any(name.startswith(BASE) for name in names):
        return list(names)
    return [BASE + name if BASE + name in known else name for name in names]


def _planned(used: Mapping[str, StoredTensor], rule: Rule) -> PlannedTensor:
    for span in rule.spans:
        _check_shape(used[span.source], span)
    if rule.stack:
        _check_alike([used[source] for source in rule.sources], rule)
    dtypes = {_dtype(used[span.source]) for span in rule.spans}
    return PlannedTensor(
        name=rule.name,
        ne=tuple(reversed(rule.full_shape)),
        spans=tuple(span._replace(source=used[span.source].name) for span in rule.spans),
        # Each of them fits into float32.
        dtype=dtypes.pop() if len(dtypes) == 1 else "F32",
        row_group=rule.row_group,
    )


def _check_names(
    checkpoint: Checkpoint,
    arch: Architecture,
    used: Mapping[str, StoredTensor],
    rules: Sequence[Rule],
) -> None:
    known = {source for rule in rules for source in rule.sources}
    asked = [
        r for r in rules if r.required or any(source in used for source in (r.beside, *r.sources))
    ]
    needed = dict.fromkeys(source for rule in asked for source in rule.sources)
    missing = [source for source in needed if source not in used]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder}: {some(missing)} missing of {len(needed)} that config.json asks "
            "for; fetch the folder again or mend config.json"
        )
    left = [tensor.name for source, tensor in used.items() if source not in known]
    if left:
        raise CheckpointError(
            f"{checkpoint.folder}: {some(left)} unknown to {arch.name} with this config.json; "
            "nothing would use them"
        )


def some(names: Sequence[str]) -> str:
    """How many tensors, and the names of some of them."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"


def _check_shape(tensor: StoredTensor, span: Span) -> None:
    if tensor.shape == span.shape:
        return
    raise CheckpointError(
        f"{tensor.path}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for "
        f"{list(span.shape)}; fetch the folder again or mend config.json"
    )


def _check_alike(tensors: Sequence[StoredTensor], rule: Rule) -> None:
    for tensor in tensors:
        if tensor.dtype != tensors[0].dtype:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} is {tensor.dtype}, {tensors[0].name} is "
                f"{tensors[0].dtype}; both belong to {rule.name}, which needs one dtype"
            )


def _dtype(tensor: StoredTensor) -> str:
    if tensor.dtype in CARRIED:
        return tensor.dtype
    if tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} is {tensor.dtype} ({prod(tensor.shape)} values); "
            f"{', '.join(DTYPES)} can be imported: fetch the checkpoint in one of them"
        )
    return DTYPES[tensor.dtype]
