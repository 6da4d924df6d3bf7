"""Whether a GGUF is what a source gives, by encoding it again, and whether it is sound at all."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpukit.conversion.checks import check_device, check_plan
from gpukit.conversion.comparing import CHUNK, ComparingWriter, Tally
from gpukit.conversion.pipeline import run_pipeline
from gpukit.errors import ArgumentError, one_line
from gpukit.events import Report, Step, Warned, ignore
from gpukit.formats.file_types import file_type_of
from gpukit.formats.gguf_fields import DEFAULT_ALIGNMENT, TensorInfo, aligned, type_sizes
from gpukit.formats.gguf_split import GGUFModel
from gpukit.formats.imatrix import Imatrix, read_imatrix
from gpukit.formats.scales import not_finite
from gpukit.given import path_of
from gpukit.planning.again import Again, check_same_model, compare_fields, other_layers, plan_again
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.planning.provenance import SOURCE, source_files
from gpukit.recipes.chosen import Word, chosen
from gpukit.recipes.plan import MEMORY
from gpukit.recipes.references import locate
from gpukit.recipes.verified import Verification, VerifiedTensor
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source
from gpukit.store import ModelName, check_models
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining

TITLE, ALONE = "comparing tensors", "checking tensors"
IMPORTANCE = "quantize.imatrix."
ALIGNMENT = "general.alignment"
# A share of different blocks above which weights are others, and one below which encoders are.
OTHER_WEIGHTS, OTHER_ENCODER = 0.9, 0.01


def verify(
    file: str | Path,
    source: str | Path | None = None,
    *,
    type: str | None = None,
    adapters: Sequence[Word] = (),
    combine: "Combining | None" = None,
    merge_base: str = "full",
    moe_layout: str | None = None,
    imatrix: str | Path | None = None,
    pre: str | None = None,
    mtp: bool | None = None,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    report: Report = ignore,
) -> Verification:
    """Whether the GGUF `file` is what `source` gives: what differs, by tensor, block and byte.

    `source`, with `adapters` merged as `convert` merges them, is encoded again, each tensor to the
    type that it has in `file`, and compared; nothing is written. With `type` the types are
    compared, too, with those of that file type. Where importance was used, `imatrix` is the same
    file. Without `source` the file is checked alone: structure, places, and scales that are not
    finite. `file` may be any part of a split model, or a name in the store; the other arguments are
    as for `convert`, and so are the errors; `FormatError` for a file of another model.

        assert gpukit.verify("llama-q4.gguf", "Llama-3.2-1B-Instruct").equal
    """
    check_plan(type, pre)
    check_device(device)
    if source is None:
        _check_alone(type=type, adapters=adapters or None, imatrix=imatrix, pre=pre, mtp=mtp)
    if not adapters and (combine is not None or merge_base != "full"):
        raise ArgumentError("no adapter to merge; give one, or leave out how it is merged")
    started = time.monotonic()
    found = locate(file)
    stored = None
    if source is None and isinstance(found.model, ModelName):
        (stored,) = check_models(found.store, [found.model], report)
        if not stored.whole or not found.store.manifest(found.model).of("model"):
            path, name = found.store.manifest_path(found.model), found.model.display
            return Verification(path, None, (), (), (), time.monotonic() - started, stored, name)
    path = found.open(report).gguf
    name = found.called(path)
    if path.is_dir():
        raise ArgumentError(f"{path}: a model folder; name a GGUF, and the folder as its source")
    with GGUFModel(path) as model:
        if source is None:
            tensors = tuple(_sound(model, report))
            notes = tuple(_behind(model, name))
            seconds = time.monotonic() - started
            return Verification(path, None, tensors, (), notes, seconds, stored, name)
        weights = read_imatrix(path_of(imatrix, "imatrix: a path")) if imatrix is not None else None
        reference = locate(source, hub=hub)
        merge = chosen(
            adapters, combine=combine, merge_base=merge_base, moe_layout=moe_layout, report=report
        )
        place = reference.fetch(report)
        names = (name, reference.called(place))
        with closing(open_source(place, pre, merge, mtp=mtp)) as opened:
            return _compared(model, opened, names, type, weights, device, memory, report, started)


def _check_alone(**others: object) -> None:
    """`ArgumentError` for what only a comparison has a use for, by name in `others`."""
    for name, value in others.items():
        if value is not None:
            raise ArgumentError(f"{name} is for comparing with a source; name that, too (--from)")


def _compared(
    model: GGUFModel,
    source: Source,
    names: tuple[str, str],
    type: str | None,
    imatrix: Imatrix | None,
    device: Device,
    memory: int,
    report: Report,
    started: float,
) -> Verification:
    infos = tuple(model.tensors.values())
    check_same_model(names, model.fields, infos, source)
    for line in source.warnings:
        report(Warned(line))
    expected, number, types = source.fields, None, {}
    if type is not None:
        options = Options(imatrix=imatrix, allow_requantize=True)
        plan = plan_quantize(source, type, options)
        expected, number = plan.fields, file_type_of(type).number
        types = {output.spec.name: output.spec.type for output in plan.outputs}
    again = plan_again(source, infos, imatrix)
    writer = ComparingWriter(model, again.outputs)
    run_pipeline(source, again.outputs, writer, TITLE, device, memory, report)
    tallies = {o.spec.name: t for o, t in zip(again.outputs, writer.tallies, strict=True)}
    tensors = tuple(_tensors(infos, again, tallies, types, type))
    metadata = compare_fields(model.fields.values(), expected, number)
    notes = [*_notes(model, source, names[0], tensors, imatrix)]
    notes += _other_files(model, source, names)
    seconds = time.monotonic() - started
    return Verification(
        model.path, source.path, tensors, metadata, tuple(notes), seconds, None, *names
    )


def _tensors(
    infos: Sequence[TensorInfo],
    again: Again,
    tallies: Mapping[str, Tally],
    types: Mapping[str, str],
    type: str | None,
) -> Iterator[VerifiedTensor]:
    """What is known of each tensor of the file, and of those that it lacks."""
    for info in infos:
        tally = tallies.get(info.name, Tally())
        problem = again.refused.get(info.name)
        wanted = types.get(info.name, info.type)
        if problem is None and wanted != info.type:
            problem = f"{info.type}, where {type} has {wanted}"
        yield VerifiedTensor(
            info.name, info.type, info.ne, info.nbytes, tally.blocks, tally.different, tally.first,
            problem,
        )  # fmt: skip
    for spec in again.missing:
        yield VerifiedTensor(spec.name, spec.type, spec.ne, 0, problem="missing in the file")


def _notes(
    model: GGUFModel,
    source: Source,
    name: str,
    tensors: Sequence[VerifiedTensor],
    imatrix: Imatrix | None,
) -> Iterator[str]:
    """Why blocks may differ, as far as can be told."""
    if told := other_layers(model.tensors, source):
        yield f"{name}: {told}"
    different = sum(tensor.different for tensor in tensors)
    if not different:
        return
    used = next((key for key in model.fields if key.startswith(IMPORTANCE)), None)
    if used is not None and imatrix is None:
        named = model.get(f"{IMPORTANCE}file")
        what = f" ({named})" if named else ""
        yield f"{name} was quantised with importance{what}: give --imatrix to compare it"
        return
    share = different / max(sum(tensor.blocks for tensor in tensors), 1)
    if share > OTHER_WEIGHTS:
        yield f"{100 * share:.3g} % of the blocks differ: it was made of other weights"
    elif share < OTHER_ENCODER:
        yield (
            f"{100 * share:.2g} % of the blocks differ: builds of llama.cpp with other compilers "
            "or for other processors differ so, and so does a damaged file"
        )


def _other_files(model: GGUFModel, source: Source, called: tuple[str, str]) -> Iterator[str]:
    """A line where the file says that it was made from others than those of the source."""
    names, headers = model.get(SOURCE + "files"), model.get(SOURCE + "headers")
    if not isinstance(names, list) or not isinstance(headers, list):
        return
    own = {file.header: file.name for file in source_files(source)}
    other = [name for name, header in zip(names, headers, strict=False) if header not in own]
    if other:
        yield (
            f"{called[0]} says that it was made from {len(names)} files, of which {len(other)} "
            f"({one_line(', '.join(map(str, other[:3])))}) are none of {called[1]}"
        )


def _sound(model: GGUFModel, report: Report) -> Iterator[VerifiedTensor]:
    """Each tensor with the first block whose scale is not finite, if there is one."""
    total, done = sum(info.nbytes for info in model.tensors.values()), 0
    buffer = np.empty(CHUNK, dtype=np.uint8)
    report(Step(ALONE, 0, total))
    for info in model.tensors.values():
        nbytes = type_sizes()[info.type].nbytes
        problem = None
        step = CHUNK // nbytes * nbytes
        for at in range(0, info.nbytes, step):
            part = buffer[: min(step, info.nbytes - at)]
            model.read_into(info, part.data, at)
            done += len(part)
            report(Step(ALONE, done, total))
            wrong = not_finite(info.type, part) if problem is None else None
            if wrong is not None:
                block = at // nbytes + wrong.block
                problem = f"{wrong.name} of block {block} is {wrong.value}"
        yield VerifiedTensor(
            info.name, info.type, info.ne, info.nbytes, info.nbytes // nbytes, problem=problem
        )


def _behind(model: GGUFModel, name: str) -> Iterator[str]:
    """A line about bytes of a file in one part that belong to nothing."""
    if model.is_split or not model.tensors:
        return
    end = max(info.offset + info.nbytes for info in model.tensors.values())
    more = model.path.stat().st_size - aligned(end, model.get(ALIGNMENT, DEFAULT_ALIGNMENT))
    if more > 0:
        yield f"{name}: {more} bytes behind the last tensor belong to nothing"
