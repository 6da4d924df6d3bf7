"""Plans what a model becomes: metadata, the type of every tensor, the files; nothing is written."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import (
    CONVERTED,
    FILE_TYPE,
    FILE_TYPES,
    QUANTIZATION_VERSION,
    FileType,
    file_type_of,
    float_type,
    with_file_type,
)
from gpukit.formats.gguf_fields import FLOATS, Field, TensorSpec, u32
from gpukit.formats.gguf_split import parts_by_size
from gpukit.formats.imatrix import Imatrix
from gpukit.models.unused import Unused, unused_of
from gpukit.planning.importance import (
    check_needed,
    check_wanted,
    importance_of,
    noted,
    some,
    unheard,
)
from gpukit.planning.mix_rules import EMBEDDINGS, OUTPUT
from gpukit.planning.mixes import Choice, choose, output_order
from gpukit.planning.overrides import (
    EMBEDDING_TYPE,
    LEAVE_OUTPUT,
    OUTPUT_TYPE,
    Overrides,
    pattern_option,
)
from gpukit.planning.plan import Options, PlannedOutput, QuantizePlan
from gpukit.planning.templates import types_like
from gpukit.sources.base import Source, SourceTensor
from gpukit_kernels import type_facts

VERSION_KEY = "general.quantization_version"
# A safetensors file of a model folder could be taken for a part of such a folder.
NAMES = (
    "a safetensors file has the names and the order of rows of a GGUF, as in blk.0.attn_q.weight, "
    "and nothing reads it as a model folder; for one with adapters in it: gpukit merge BASE FOLDER"
)


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
    idle: list[str] = []
    told: list[str] = []
    chosen = _file_type(source, file_type)
    if options.like is not None:
        chosen, overrides, told = types_like(options.like, source.tensors, source.path)
        options = replace(options, like=None, overrides=overrides)
        file_type = chosen.name
    if chosen is None:
        outputs = [
            _output(source, i, t.ne, Choice(t.type, t.type)) for i, t in enumerate(source.tensors)
        ]
        fields = list(source.fields)
        title = "converting model" if source.is_checkpoint else "copying model"
    else:
        if source.is_checkpoint and chosen.name in CONVERTED and options.overrides is None:
            own = source.converted_file(chosen) if options.carry else chosen
            fields, outputs = _converted(source, chosen, own, options)
            chosen = own
        else:
            fields, outputs, idle = _quantized(source, chosen, options)
        _refuse_lossy(source, outputs, options)
        same = source.label == chosen.name or file_type is None
        shown = (file_type or "").upper()
        title = "converting model" if same else f"quantizing {source.label} model to {shown}"
    gone = decoded_with(source, outputs)
    outputs = [output for output in outputs if output.index not in gone]
    check_needed(outputs, source)
    parts = _parts(source, outputs, options, gone)
    names = [NAMES] if source.is_checkpoint and not options.carry else []
    warnings = (
        *source.warnings,
        *names,
        *told,
        *idle,
        *_unfitting(outputs),
        *_without_scales(source, outputs),
        *unheard(outputs, options.imatrix, chosen),
    )
    return QuantizePlan(chosen, title, tuple(fields), tuple(outputs), parts, warnings)


def _file_type(source: Source, name: str | None) -> FileType | None:
    if name is not None:
        return file_type_of(name)
    return FILE_TYPES[source.auto] if source.auto is not None else None


def _converted(
    source: Source, chosen: FileType, own: FileType, options: Options
) -> tuple[list[Field], list[PlannedOutput]]:
    outputs = []
    for index, tensor in enumerate(source.tensors):
        kind = source.converted_type(index, chosen.default)
        if not options.carry and kind not in FLOATS:
            kind = float_type(tensor.name, tensor.ne, chosen.default)
        outputs.append(_output(source, index, tensor.ne, Choice(kind, kind)))
    return list(with_file_type(source.fields, own.number)), outputs


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
    unused = unused_of(source.get)
    outputs = [
        _output(source, index, _trimmed(tensor), choice, imatrix, unused)
        for index, tensor, choice in zip(order, tensors, choices, strict=True)
    ]
    check_wanted(outputs, chosen, imatrix, source.path)
    notes = noted(imatrix)
    dropped = {VERSION_KEY, FILE_TYPE, "general.alignment", *(note.key for note in notes)}
    fields = [entry for entry in source.fields if entry.key not in dropped]
    fields += [u32(VERSION_KEY, QUANTIZATION_VERSION), u32(FILE_TYPE, chosen.number), *notes]
    idle = _idle(tensors, choices, options.overrides) if options.overrides else []
    return fields, outputs, idle


def _output(
    source: Source,
    index: int,
    ne: tuple[int, ...],
    choice: Choice,
    imatrix: Imatrix | None = None,
    unused: Unused | None = None,
) -> PlannedOutput:
    kind = choice.type
    spec = TensorSpec(source.tensors[index].name, ne, kind)
    stored = source.stored_type(index)
    importance = None
    if imatrix is not None and unused is not None and kind != stored:
        importance = importance_of(spec, imatrix, unused)
    return PlannedOutput(index, spec, stored, importance, choice.wanted)


def _idle(
    tensors: Sequence[TensorSpec], choices: Sequence[Choice], overrides: Overrides
) -> list[str]:
    """Lines about options that decide the type of no tensor."""
    heard = {choice.option for choice in choices}
    patterns = {pattern_option(*found): found[0] for found in overrides.patterns}
    ends = {OUTPUT_TYPE: (OUTPUT,), LEAVE_OUTPUT: (OUTPUT,), EMBEDDING_TYPE: EMBEDDINGS}
    lines = []
    for option in overrides.options():
        if option in heard:
            continue
        pattern = patterns.get(option)
        fits = pattern.search if pattern is not None else ends.get(option, ()).__contains__
        matched = [t.name for t in tensors if fits(t.name)]
        if matched:
            why = f"what it fits, {some(matched)}, stays as it is or follows another option"
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
        f"{some(names)}: rows of {width} are no multiple of {type_facts()[wanted].block}, "
        f"{kind} instead of {wanted}"
        for (width, wanted, kind), names in groups.items()
    ]


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
                f"{source.path}: {output.spec.name} is quantised already ({old}); "
                f"{_instead(source, old)}, or allow the loss with --allow-requantize"
            )


def _instead(source: Source, old: str) -> str:
    """What keeps a tensor of type `old` from being quantised twice, in words."""
    if not source.is_checkpoint:
        return "start from the checkpoint or from an F16, BF16 or F32 GGUF"
    pattern = "_exps" if any("_exps." in tensor.name for tensor in source.tensors) else "."
    alone = {"MXFP4": "the type MXFP4_MOE, or ", "NVFP4": "the type NVFP4, or "}.get(old, "")
    return f"what keeps it is {alone}--tensor-type {pattern}={old}"


def decoded_with(source: Source, outputs: Iterable[PlannedOutput]) -> set[int]:
    """The tensors of `source` that are in the values of others, whose blocks are not kept."""
    return {
        index
        for output in outputs
        if not source.passes(output.index, output.spec.type)
        for index in source.beside(output.index)
    }


def _without_scales(source: Source, outputs: Iterable[PlannedOutput]) -> list[str]:
    """A line about tensors that keep their type and are encoded anew, without the scale for all of
    the tensor that they had: what writes blocks knows only those of sixteen values."""
    names: dict[str, list[str]] = {}
    for output in outputs:
        kind = output.spec.type
        if kind == output.source_type and decoded_with(source, [output]):
            names.setdefault(kind, []).append(output.spec.name)
    return [
        f"{some(found)}: merged and {kind} again, without the scale for the whole tensor that "
        "they had: small weights become coarse or 0; for finer ones give --type F16, and quantise "
        "that"
        for kind, found in names.items()
    ]


def _parts(
    source: Source, outputs: Sequence[PlannedOutput], options: Options, gone: Container[int]
) -> tuple[int, ...]:
    """The number of tensors in each file, without those that are `gone`."""
    if options.keep_split:
        if len(source.parts) == 1:
            raise ArgumentError(
                f"{source.path}: --keep-split needs a GGUF in several parts, and this model is in "
                "one; --split-max-size splits it"
            )
        numbers = iter(range(len(source.tensors)))
        return tuple(
            sum(index not in gone for index in islice(numbers, count)) for count in source.parts
        )
    if options.split_max_size:
        return parts_by_size([output.spec for output in outputs], options.split_max_size)
    return (len(outputs),)
