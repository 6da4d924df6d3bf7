"""Plans what a model becomes: metadata, the type of every tensor, the files; nothing is written."""

from collections.abc import Sequence
from math import prod

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import (
    FILE_TYPE,
    FILE_TYPES,
    QUANTIZATION_VERSION,
    FileType,
    file_type_of,
    float_type,
    with_file_type,
)
from gpukit.formats.gguf_fields import FLOATS, Field, TensorSpec, string, u32
from gpukit.formats.gguf_split import parts_by_size
from gpukit.formats.imatrix import Floats, Imatrix
from gpukit.planning.mixes import Choice, choose, needs_importance, output_order
from gpukit.planning.overrides import Overrides, pattern_option
from gpukit.planning.plan import Options, PlannedOutput, QuantizePlan
from gpukit.sources.base import Source, SourceTensor
from gpukit_kernels import type_facts

VERSION_KEY = "general.quantization_version"
# File types that llama.cpp's converter writes itself, in its own order of tensors and metadata.
CONVERTED = ("F32", "F16", "BF16", "Q8_0")
# llama-quantize keeps no more bytes of a text that it notes.
NOTED = 127


def plan_quantize(
    source: Source, file_type: str | None = None, options: Options | None = None
) -> QuantizePlan:
    """What `source` becomes as `file_type`; None keeps a checkpoint's own type (BF16 or F16) and
    the types of a GGUF.

    A folder to F32, F16, BF16 or Q8_0 gives the file of llama.cpp's converter, everything else that
    of llama-quantize. `ArgumentError` for an unknown type, for a source that is quantised already
    and for options that contradict it.
    """
    options = options or Options()
    chosen = _file_type(source, file_type)
    unheard: list[str] = []
    if chosen is None:
        outputs = [
            _output(source, i, t.ne, Choice(t.type, t.type)) for i, t in enumerate(source.tensors)
        ]
        fields, title = list(source.fields), "copying model"
    else:
        if source.is_checkpoint and chosen.name in CONVERTED and options.overrides is None:
            fields, outputs = _converted(source, chosen)
        else:
            fields, outputs, unheard = _quantized(source, chosen, options)
        _refuse_lossy(source, outputs, options)
        same = source.label == chosen.name or file_type is None
        shown = (file_type or "").upper()
        title = "converting model" if same else f"quantizing {source.label} model to {shown}"
    parts = _parts(source, outputs, options)
    warnings = (
        *source.warnings,
        *unheard,
        *_unfitting(outputs),
        *_unmatched(outputs, options.imatrix),
    )
    return QuantizePlan(chosen, title, tuple(fields), tuple(outputs), parts, warnings)


def _file_type(source: Source, name: str | None) -> FileType | None:
    if name is not None:
        return file_type_of(name)
    return FILE_TYPES[source.auto] if source.auto is not None else None


def _converted(source: Source, chosen: FileType) -> tuple[list[Field], list[PlannedOutput]]:
    outputs = [
        _output(source, index, tensor.ne, Choice(kind, kind))
        for index, tensor in enumerate(source.tensors)
        for kind in [float_type(tensor.name, tensor.ne, chosen.default)]
    ]
    return list(with_file_type(source.fields, chosen.number)), outputs


def _quantized(
    source: Source, chosen: FileType, options: Options
) -> tuple[list[Field], list[PlannedOutput], list[str]]:
    """Metadata, tensors, and lines for the user about options that decide nothing."""
    order = list(range(len(source.tensors)))
    if not options.keep_split:
        order.sort(key=lambda i: output_order(source.tensors[i].name))
    tensors = [source.tensors[index] for index in order]
    imatrix = options.imatrix
    choices = choose(tensors, source.get, chosen, options.overrides, imatrix is not None)
    outputs = [
        _output(source, index, _trimmed(tensor), choice, imatrix)
        for index, tensor, choice in zip(order, tensors, choices, strict=True)
    ]
    for output in outputs:
        changed = output.spec.type != output.source_type
        if changed and output.importance is None and needs_importance(
            output.spec.name, output.spec.type, chosen
        ):  # fmt: skip
            where = f"{imatrix.path} has none for it" if imatrix else "give --imatrix FILE"
            raise ArgumentError(
                f"{source.path}: {output.spec.name}: {chosen.name} needs importance weights for "
                f"{output.spec.type}: {where}, or choose Q2_K"
            )
    noted = _noted(imatrix)
    dropped = {VERSION_KEY, FILE_TYPE, "general.alignment", *(note.key for note in noted)}
    fields = [entry for entry in source.fields if entry.key not in dropped]
    fields += [u32(VERSION_KEY, QUANTIZATION_VERSION), u32(FILE_TYPE, chosen.number), *noted]
    unheard = _unheard(tensors, choices, options.overrides) if options.overrides else []
    return fields, outputs, unheard


def _noted(imatrix: Imatrix | None) -> list[Field]:
    """What llama-quantize writes into a file about the importance that it used."""
    if imatrix is None:
        return []
    cut = [text.encode()[:NOTED].decode("utf-8", "ignore") for text in
           (str(imatrix.path), imatrix.dataset)]  # fmt: skip
    fields = [string("quantize.imatrix.file", cut[0])]
    if cut[1]:
        fields.append(string("quantize.imatrix.dataset", cut[1]))
    fields.append(u32("quantize.imatrix.entries_count", len(imatrix.entries)))
    if imatrix.chunks > 0:
        fields.append(u32("quantize.imatrix.chunks_count", imatrix.chunks))
    return fields


def _output(
    source: Source, index: int, ne: tuple[int, ...], choice: Choice, imatrix: Imatrix | None = None
) -> PlannedOutput:
    kind = choice.type
    spec = TensorSpec(source.tensors[index].name, ne, kind)
    stored = source.stored_type(index)
    importance = None
    if imatrix is not None and kind != stored:
        importance = _importance(spec, imatrix)
    return PlannedOutput(index, spec, stored, importance, choice.wanted)


def _importance(spec: TensorSpec, imatrix: Imatrix) -> Floats | None:
    """The importance of a tensor's columns, of each matrix its own; None where nobody looks."""
    values = imatrix.entries.get(spec.name)
    facts = type_facts().get(spec.type)
    if values is None or facts is None or not facts.takes_importance:
        return None
    wanted = spec.ne[0] * prod(spec.ne[2:3])
    if values.size == wanted:
        return values
    if spec.name == "token_embd.weight":  # as llama-quantize has it
        return None
    raise ArgumentError(
        f"{imatrix.path}: {spec.name} has {values.size} values, the tensor takes {wanted}; "
        "this importance matrix was made for another model"
    )


def _unheard(
    tensors: Sequence[TensorSpec], choices: Sequence[Choice], overrides: Overrides
) -> list[str]:
    """Lines about options that decide the type of no tensor."""
    heard = {choice.option for choice in choices}
    patterns = {pattern_option(*found): found[0] for found in overrides.patterns}
    lines = []
    for option in overrides.options():
        if option in heard:
            continue
        pattern = patterns.get(option)
        matched = [t.name for t in tensors if pattern is not None and pattern.search(t.name)]
        if matched:
            why = f"what it fits, {_some(matched)}, stays as it is or follows another option"
        else:
            why = f"fits none of the {len(tensors)} tensors"
        lines.append(f"{option} changes nothing: {why}; --dry-run shows their names")
    return lines


def _unfitting(outputs: Sequence[PlannedOutput]) -> list[str]:
    """Lines about tensors that get another type than their mix has, since blocks do not fit."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for output in outputs:
        if output.wanted and output.wanted != output.spec.type:
            key = (output.spec.ne[0], output.wanted, output.spec.type)
            groups.setdefault(key, []).append(output.spec.name)
    return [
        f"{_some(names)}: rows of {width} are no multiple of {type_facts()[wanted].block}, "
        f"{kind} instead of {wanted}"
        for (width, wanted, kind), names in groups.items()
    ]


def _some(names: Sequence[str]) -> str:
    """How many tensors, and the names of the first."""
    what = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    return f"{what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"


def _unmatched(outputs: Sequence[PlannedOutput], imatrix: Imatrix | None) -> tuple[str, ...]:
    """Lines about tensors that are quantised without importance although there is some."""
    if imatrix is None:
        return ()
    takes = {name for name, facts in type_facts().items() if facts.takes_importance}
    changed = [o for o in outputs if o.spec.type in takes and o.spec.type != o.source_type]
    if not changed:
        return (f"{imatrix.path} is not used: no tensor becomes a type that takes importance",)
    without = [o.spec.name for o in changed if o.importance is None]
    # llama-imatrix does not look at the ends of a model by default.
    without = [name for name in without if name.startswith("blk.")]
    if not without:
        return ()
    return (f"{imatrix.path} has nothing on {_some(without)}: quantised without importance",)


def _trimmed(tensor: SourceTensor) -> tuple[int, ...]:
    """Dimensions without ones at the end, as llama-quantize writes them."""
    ne = tensor.ne
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return ne


def _refuse_lossy(source: Source, outputs: Sequence[PlannedOutput], options: Options) -> None:
    """Quantised tensors become floats, or another quantised type where that is allowed."""
    for output in outputs:
        old, new = output.source_type, output.spec.type
        if old in FLOATS or old == new:
            continue
        if old not in type_facts():
            raise ArgumentError(
                f"{source.path}: {output.spec.name} is {old}, which gpukit cannot decode; "
                f"known: {', '.join(type_facts())}"
            )
        if not options.allow_requantize and new not in FLOATS:
            raise ArgumentError(
                f"{source.path}: {output.spec.name} is quantised already ({old}); start from the "
                "checkpoint or from an F16, BF16 or F32 GGUF, or allow the loss with "
                "--allow-requantize"
            )


def _parts(source: Source, outputs: Sequence[PlannedOutput], options: Options) -> tuple[int, ...]:
    """The number of tensors in each file."""
    if options.keep_split:
        if len(source.parts) == 1:
            raise ArgumentError(
                f"{source.path}: --keep-split needs a GGUF in several parts, and this model is in "
                "one; --split-max-size splits it"
            )
        return source.parts
    if options.split_max_size:
        return parts_by_size([output.spec for output in outputs], options.split_max_size)
    return (len(outputs),)
