"""Many files of one model from one reading: converted, quantised, merged, or only planned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.conversion.checks import check_run, has_blocks
from gpukit.conversion.resuming import Resume
from gpukit.conversion.run import Result
from gpukit.conversion.run_many import check_distinct, run_plans
from gpukit.errors import ArgumentError
from gpukit.events import Report, ignore
from gpukit.formats.file_types import file_type_of, listed_types
from gpukit.formats.imatrix import read_imatrix
from gpukit.formats.outputs import check_output
from gpukit.given import path_of
from gpukit.planning.fingerprint import fingerprint_of
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.provenance import Recipe
from gpukit.recipes.bridge import Checkout
from gpukit.recipes.chosen import Word
from gpukit.recipes.merge import FILES
from gpukit.recipes.plan import MEMORY, PLAIN, Holding, options_of, planned_as
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining

# What stands in the name of an output for its type.
TYPE = "{type}"


@dataclass(frozen=True)
class Plans(Holding):
    """What a model becomes as each of `types`; `write` makes it so, in one pass.

    It holds the model open: use it in a `with`, or `close` it.
    """

    types: tuple[str, ...]
    records: tuple[QuantizePlan, ...]
    recipes: tuple[Recipe, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(plan.size for plan in self.records)

    def as_json(self) -> list[dict[str, Any]]:
        """The plans, each as one JSON-ready document; sizes in bytes."""
        return [plan.as_json() for plan in self.records]

    def write(
        self,
        out: str | Path,
        *,
        device: Device = "auto",
        memory: int = MEMORY,
        resume: bool = False,
        report: Report = ignore,
    ) -> list[Result]:
        """Write all files, whole or none; arguments and errors as `convert_many`."""
        self.check_open()
        outs = outputs_of(out, self.types)
        of = [Resume(fingerprint_of(self.source.path, each)) for each in self.recipes if resume]
        return run_plans(
            self.source, self.records, outs, device=device, budget=memory, resume=of or None,
            report=report,
        )  # fmt: skip


def plan_many(
    model: str | Path,
    types: Iterable[str],
    *,
    options: Options | None = PLAIN,
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
    device: Device = "auto",
    report: Report = ignore,
) -> Plans:
    """What `model` becomes as each of `types`; nothing is written. Arguments and errors as `plan`
    and `convert_many`.

    with gpukit.plan_many("llama", ["Q4_K_M", "Q8_0"]) as plans:
        print(plans.size)
        plans.write("llama-{type}.gguf")
    """
    options = options_of(options)
    kinds = checked_types(types, options)
    source, records, recipes = planned_as(
        model, kinds, options=options, calibrate=calibrate, adapters=adapters, combine=combine,
        merge_base=merge_base, strict=strict, moe_layout=moe_layout, pre=pre,
        converter=converter, provenance=provenance, hub=hub, device=device, report=report,
    )  # fmt: skip
    return Plans(source, tuple(kinds), tuple(records), tuple(recipes))


def convert_many(
    model: str | Path,
    out: str | Path,
    types: Iterable[str],
    *,
    adapters: Sequence[Word] = (),
    combine: "Combining | None" = None,
    merge_base: str = "full",
    strict: bool = False,
    moe_layout: str | None = None,
    imatrix: str | Path | None = None,
    allow_requantize: bool = False,
    split_max_size: int | None = None,
    pre: str | None = None,
    mtp: bool | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> list[Result]:
    """Write `model` as each of `types` to `out` with the type's name for {type}: the results, in
    the order of `types`.

    Each file is what `convert` would write. The model is read once: a tensor is made once, adapters
    and all, and encoded once for all files that have the same type for it. `memory` bounds the
    buffers of all of it. The files appear together, when all are complete; after an error there is
    none. Seconds and bytes read are in each result those of the whole. Arguments and errors as
    `convert`; `ArgumentError` also for an `out` without {type} and for a type that is named twice.

        gpukit.convert_many("Llama-3.2-1B", "llama-{type}.gguf", ["Q4_K_M", "Q8_0"])
    """
    weights = read_imatrix(path_of(imatrix, "imatrix: a path")) if imatrix is not None else None
    options = Options(
        imatrix=weights, allow_requantize=allow_requantize, split_max_size=split_max_size,
        mtp=mtp, carry=has_blocks(path_of(out, "a path for the output")),
    )  # fmt: skip
    types = listed_types(types)
    _check(out, types, options, device, provenance=provenance)
    with plan_many(
        model, types, options=options, adapters=adapters, combine=combine, merge_base=merge_base,
        strict=strict, moe_layout=moe_layout, pre=pre, converter=converter,
        provenance=provenance, hub=hub, device=device, report=report,
    ) as plans:  # fmt: skip
        return plans.write(out, device=device, memory=memory, resume=resume, report=report)


def quantize_many(
    model: str | Path,
    out: str | Path,
    types: Iterable[str],
    *,
    options: Options | None = PLAIN,
    calibrate: str | Path | None = None,
    pre: str | None = None,
    converter: Checkout | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> list[Result]:
    """Write `model` as each of `types`, as `convert_many` and with all `options` that go with a
    type, which hold for each file. `calibrate` is as for `quantize`; the text is read once.

        gpukit.quantize_many("llama-f16.gguf", "llama-{type}.gguf", ["Q4_K_M", "Q5_K_M", "IQ4_XS"])
    """
    types, options = listed_types(types), options_of(options)
    outs = _check(out, types, options, device, provenance=provenance)
    if isinstance(calibrate, Path):
        for path in outs:
            check_output(path, [calibrate])
    options = replace(options, carry=has_blocks(path_of(out, "a path for the output")))
    with plan_many(
        model, types, options=options, calibrate=calibrate, pre=pre, converter=converter,
        provenance=provenance, hub=hub, device=device, report=report,
    ) as plans:  # fmt: skip
        return plans.write(out, device=device, memory=memory, resume=resume, report=report)


def merge_many(
    base: str | Path,
    adapters: Sequence[Word],
    out: str | Path,
    types: Iterable[str],
    *,
    combine: "Combining | None" = None,
    merge_base: str = "full",
    imatrix: str | Path | None = None,
    allow_requantize: bool = False,
    strict: bool = False,
    moe_layout: str | None = None,
    pre: str | None = None,
    provenance: bool = False,
    hub: bool = False,
    device: Device = "auto",
    memory: int = MEMORY,
    resume: bool = False,
    report: Report = ignore,
) -> list[Result]:
    """Write `base` with `adapters` merged as each of `types`, as `convert_many`: they are merged
    once. A folder is written by `merge`.

        gpukit.merge_many("Llama-3.2-1B", ["my-lora"], "merged-{type}.gguf", ["Q4_K_M", "Q8_0"])
    """
    if not adapters:
        raise ArgumentError("no adapter to merge; give one, or convert the model")
    if path_of(out, "a path for the output").suffix.lower() not in FILES:
        raise ArgumentError(
            f"{out}: a folder is written alone; name .gguf files, or merge without types"
        )
    return convert_many(
        base, out, types, adapters=adapters, combine=combine, merge_base=merge_base,
        imatrix=imatrix, allow_requantize=allow_requantize, strict=strict, moe_layout=moe_layout,
        pre=pre, provenance=provenance, hub=hub, device=device, memory=memory, resume=resume,
        report=report,
    )  # fmt: skip


def checked_types(types: Iterable[str], options: Options) -> list[str]:
    """The file types `types` by their names; `ArgumentError` for none, for one that is unknown or
    there twice, and beside an option that takes the place of a type."""
    words = listed_types(types)
    if not words:
        raise ArgumentError("no types; give some, as in Q4_K_M,Q8_0")
    if options.instead is not None:
        raise ArgumentError(f"several types and {options.instead} exclude each other; give one")
    found: dict[str, str] = {}
    for word in words:
        name = file_type_of(word).name
        if name in found:
            raise ArgumentError(f"type {word}: {found[name]} is the same; name each type once")
        found[name] = word
    return list(found)


def outputs_of(out: str | Path, kinds: Sequence[str]) -> list[Path]:
    """The place of each type; `ArgumentError` where `out` does not tell them apart."""
    if TYPE not in str(out):
        raise ArgumentError(
            f"{out}: no {TYPE} in it, where the name of each type goes; write model-{TYPE}.gguf"
        )
    paths = [Path(str(out).replace(TYPE, kind)) for kind in kinds]
    check_distinct(paths)
    return paths


def _check(
    out: str | Path, types: Sequence[str], options: Options, device: Device, *, provenance: bool
) -> list[Path]:
    """The places of the files. What can be wrong whatever the model is looked at here, before that
    is fetched."""
    kinds = checked_types(types, options)
    outs = outputs_of(out, kinds)
    for path, kind in zip(outs, kinds, strict=True):
        check_run(path, kind, options, device, provenance=provenance)
    return outs
