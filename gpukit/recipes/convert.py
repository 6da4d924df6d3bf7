"""One file from a model: converted, quantised, or only planned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.conversion.checks import check_plan, check_run, has_blocks
from gpukit.conversion.resuming import Resume
from gpukit.conversion.run import Result, run_plan
from gpukit.conversion.within import plan_within
from gpukit.errors import ArgumentError
from gpukit.events import Report, Status, ignore
from gpukit.formats.closing import Closing
from gpukit.formats.file_types import FileType
from gpukit.formats.imatrix import read_imatrix
from gpukit.formats.outputs import check_output
from gpukit.planning.fingerprint import fingerprint_of
from gpukit.planning.plan import Options, PlannedOutput, QuantizePlan
from gpukit.planning.provenance import Recipe, has_provenance, with_provenance
from gpukit.planning.totals import TypeTotal
from gpukit.recipes.bridge import Checkout, bridge
from gpukit.recipes.chosen import Word, chosen
from gpukit.recipes.references import locate
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining

# What the two verbs take for granted: bytes of host memory for buffers.
MEMORY = 4 << 30
PLAIN = Options()


@dataclass(frozen=True)
class Plan(Closing):
    """What a model becomes: its tensors in file order, their types and sizes; `write` makes it so.

    It holds the model open: use it in a `with`, or `close` it.
    """

    source: Source
    records: QuantizePlan
    recipe: Recipe

    @property
    def file_type(self) -> FileType | None:
        """The file type; None where a GGUF keeps its tensors' own types."""
        return self.records.file_type

    @property
    def outputs(self) -> tuple[PlannedOutput, ...]:
        """The tensors in file order: `spec` has name, dimensions, type and bytes."""
        return self.records.outputs

    @property
    def parts(self) -> tuple[int, ...]:
        """The number of tensors in each file."""
        return self.records.parts

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines for the user, which `write` reports."""
        return self.records.warnings

    @property
    def size(self) -> int:
        """Bytes of all that will be written."""
        return self.records.size

    def totals(self) -> list[TypeTotal]:
        """Sums by type, largest first."""
        return self.records.totals()

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON-ready document; sizes in bytes."""
        return self.records.as_json()

    def write(
        self,
        out: str | Path,
        *,
        device: str = "auto",
        memory: int = MEMORY,
        resume: bool = False,
        report: Report = ignore,
    ) -> Result:
        """Write `out`, or its parts, whole or not at all; arguments and errors as `convert`."""
        return run_plan(
            self.source, self.records, Path(out), device=device, budget=memory,
            resume=Resume(fingerprint_of(self.source.path, self.recipe)) if resume else None,
            report=report,
        )  # fmt: skip

    def close(self) -> None:
        self.source.close()


def plan(
    model: str | Path,
    type: str | None = None,
    *,
    options: Options = PLAIN,
    calibrate: str | Path | None = None,
    adapters: Sequence[Word] = (),
    combine: "Combining | None" = None,
    merge_base: str = "full",
    strict: bool = False,
    moe_layout: str | None = None,
    pre: str | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: str = "auto",
    report: Report = ignore,
) -> Plan:
    """What `model` becomes as `type`; nothing is written. Arguments and errors as `convert`, with
    the options and `calibrate` of `quantize`. `device` measures where a target asks for it, and
    reads the text.

    with gpukit.plan("llama", "Q4_K_M") as plan:
        print(plan.size)
        plan.write("llama.gguf")
    """
    source, (records,), (recipe,) = planned_as(
        model, (type,), options=options, calibrate=calibrate, adapters=adapters, combine=combine,
        merge_base=merge_base, strict=strict, moe_layout=moe_layout, pre=pre,
        converter=converter, provenance=provenance, hub=hub, device=device, report=report,
    )  # fmt: skip
    return Plan(source, records, recipe)


def planned_as(
    model: str | Path,
    types: Sequence[str | None],
    *,
    options: Options,
    calibrate: str | Path | None,
    adapters: Sequence[Word],
    combine: "Combining | None",
    merge_base: str,
    strict: bool,
    moe_layout: str | None,
    pre: str | None,
    converter: Checkout | None,
    provenance: bool,
    hub: bool,
    device: str,
    report: Report,
) -> tuple[Source, list[QuantizePlan], list[Recipe]]:
    """`model`, open, what it becomes as each of `types`, and what was asked for with each;
    arguments and errors as `plan`."""
    for type in types:
        check_plan(type, pre, options)
    _check_calibration(calibrate, options)
    how = bridge(
        converter, types, overrides=options.overrides, pre=pre, mtp=options.mtp,
        adapters=bool(adapters), calibrate=calibrate is not None,
    )  # fmt: skip
    reference = locate(model, hub=hub)
    merge = chosen(
        adapters, combine=combine, merge_base=merge_base, strict=strict, moe_layout=moe_layout,
        report=report,
    )  # fmt: skip
    path = reference.fetch(report)
    if calibrate is not None:
        from gpukit.recipes.calibration import options_with  # its models need torch

        options = options_with(
            path, calibrate, options, types, pre=pre, merge=merge, device=device, report=report
        )
    if how is not None:
        report(Status(how.telling(path)))
    source = open_source(path, pre, merge, how, options.mtp)
    try:
        fields, plans = source.fields, []
        recipes = [Recipe(type, options, pre, merge, how) for type in types]
        for recipe in recipes:
            source.fields = fields
            if provenance or has_provenance(fields):
                source.fields = with_provenance(source, recipe)
            plans.append(plan_within(source, recipe.type, options, device, report))
    except BaseException:
        source.close()
        raise
    return source, plans, recipes


def convert(
    model: str | Path,
    out: str | Path,
    type: str | None = None,
    *,
    adapters: Sequence[Word] = (),
    combine: "Combining | None" = None,
    merge_base: str = "full",
    strict: bool = False,
    moe_layout: str | None = None,
    imatrix: str | Path | None = None,
    target_bpw: float | None = None,
    target_size: int | None = None,
    like: str | Path | None = None,
    split_max_size: int | None = None,
    pre: str | None = None,
    mtp: bool | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: str = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> Result:
    """Write `model` to `out` as file type `type`: paths, size, seconds, totals and what was lost.

    `model` is a folder from Hugging Face, a GGUF, a name in the store, or an id of the hub
    (hf.co/org/name, or with `hub` org/name). `out` is a GGUF, or, from a GGUF to floats, a file
    that ends in .safetensors; it appears whole or not at all. No `type` keeps a folder's own (BF16
    or F16) and the types of a GGUF. `adapters` are merged on the way, in order: folders, files or
    ids (hf.co/org/name), each as it is, as "DIR:WEIGHT" or as (DIR, WEIGHT); `combine`
    and `merge_base` are as for `merge`. With `strict` one that
    names another base is refused, not only warned about; `moe_layout` (peft, peft-0.18, unsloth)
    tells how tensors of experts lie where that cannot be seen. `imatrix` is a file with importance
    weights, .gguf or .dat; `target_bpw` (bits per weight), `target_size` (bytes of the file) and
    `like` (a GGUF whose tensors' types are taken) stand in for `type`; `split_max_size` (bytes)
    splits the output; `pre` names the pre-tokenizer of a folder where none is recognised; `mtp`
    has of a folder the layers alone that guess further tokens, False all but those;
    `converter` is a checkout of llama.cpp, or a `Converter`, whose own converter reads the folder,
    whatever its class: code of that checkout is run; with
    `provenance` the metadata says what the file was made from (`gpukit.*`); `device` is auto, cpu,
    cuda, cuda:N or several with commas; `memory` bounds buffers on the host, in bytes; `resume`
    goes on, tensor by tensor, with a run of the same that was killed and had it, too, and else
    refuses (`ArgumentError`); `report` hears progress and warnings.
    `ArgumentError` for what cannot be asked for, NotFoundError for a model that is not there,
    `CheckpointError`, `FormatError` and `HubError` for one that is wrong or cannot be had,
    `AdapterError` for an adapter that does not fit it or contradicts another,
    `DiskError` where the disk refuses.

        gpukit.convert("Llama-3.2-1B-Instruct", "llama.gguf", "Q4_K_M").size
    """
    weights = read_imatrix(Path(imatrix)) if imatrix is not None else None
    options = Options(
        imatrix=weights, split_max_size=split_max_size, target_bpw=target_bpw,
        target_size=target_size, like=Path(like) if like is not None else None, mtp=mtp,
        carry=has_blocks(Path(out)),
    )  # fmt: skip
    # Whatever the model, this can be wrong: looked at before that is fetched.
    check_run(Path(out), type, options, device, provenance=provenance)
    with plan(
        model, type, options=options, adapters=adapters, combine=combine, merge_base=merge_base,
        strict=strict, moe_layout=moe_layout, pre=pre, converter=converter,
        provenance=provenance, hub=hub, device=device, report=report,
    ) as planned:  # fmt: skip
        return planned.write(out, device=device, memory=memory, resume=resume, report=report)


def quantize(
    model: str | Path,
    out: str | Path,
    type: str | None = None,
    *,
    options: Options = PLAIN,
    calibrate: str | Path | None = None,
    pre: str | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: str = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> Result:
    """Write `model` to the GGUF `out` as file type `type`, as llama-quantize does.

    As `convert`, but with all `options`: types of single tensors, importance weights, a target or
    a template instead of a type, what may be quantised again, how the output is split. `calibrate`
    is a text, or the `Path` of one, that the model reads first; the importance that it has then
    stands in for that of `options`.

        gpukit.quantize("llama-f16.gguf", "llama-q6.gguf", "Q6_K", device="cpu").totals
    """
    if type is None and options.instead is None:
        raise ArgumentError(
            "no type; give a file type such as Q4_K_M, or --target-bpw, --target-size or --like"
        )
    check_run(Path(out), type, options, device, provenance=provenance)
    if isinstance(calibrate, Path):
        check_output(Path(out), [calibrate])
    options = replace(options, carry=has_blocks(Path(out)))
    with plan(
        model, type, options=options, calibrate=calibrate, pre=pre, converter=converter,
        provenance=provenance, hub=hub, device=device, report=report,
    ) as planned:  # fmt: skip
        return planned.write(out, device=device, memory=memory, resume=resume, report=report)


def _check_calibration(text: str | Path | None, options: Options) -> None:
    if text is not None and options.imatrix is not None:
        raise ArgumentError(
            f"--calibrate and --imatrix {options.imatrix.path}: both are importance; give one"
        )
