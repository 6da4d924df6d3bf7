"""What a model becomes as one file or several, before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.conversion.checks import check_plan
from gpukit.conversion.resuming import Resume
from gpukit.conversion.run import Result, run_plan
from gpukit.conversion.within import plan_within
from gpukit.errors import ArgumentError, unlike
from gpukit.events import Report, Status, ignore
from gpukit.formats.closing import Closing
from gpukit.formats.file_types import FileType
from gpukit.given import path_of
from gpukit.planning.fingerprint import fingerprint_of
from gpukit.planning.plan import Options, PlannedOutput, QuantizePlan
from gpukit.planning.provenance import Recipe, has_provenance, with_provenance
from gpukit.planning.totals import TypeTotal
from gpukit.recipes.bridge import Checkout, bridge
from gpukit.recipes.chosen import Word, chosen
from gpukit.recipes.references import locate
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining

# What the verbs take for granted: bytes of host memory for buffers.
MEMORY = 4 << 30
PLAIN = Options()


def options_of(given: Options | None) -> Options:
    """`given`, or what is taken for granted; `ArgumentError` for what are no `Options`."""
    if not isinstance(given, Options | None):
        raise ArgumentError(f"options: {unlike('gpukit.Options', given)}")
    return PLAIN if given is None else given


@dataclass(frozen=True)
class Holding(Closing):
    """A plan, which holds its model open."""

    source: Source
    is_closed: bool = field(default=False, init=False, repr=False)

    def close(self) -> None:
        object.__setattr__(self, "is_closed", True)
        self.source.close()

    def check_open(self) -> None:
        """`ArgumentError` where nothing more can be read of the model."""
        if self.is_closed:
            raise ArgumentError(f"{self.source.path}: this plan of it is closed; make a new one")


@dataclass(frozen=True)
class Plan(Holding):
    """What a model becomes: its tensors in file order, their types and sizes; `write` makes it so.

    It holds the model open: use it in a `with`, or `close` it.
    """

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
        device: Device = "auto",
        memory: int = MEMORY,
        resume: bool = False,
        report: Report = ignore,
    ) -> Result:
        """Write `out`, or its parts, whole or not at all; arguments and errors as `convert`."""
        self.check_open()
        out = path_of(out, "a path for the output")
        return run_plan(
            self.source, self.records, out, device=device, budget=memory,
            resume=Resume(fingerprint_of(self.source.path, self.recipe)) if resume else None,
            report=report,
        )  # fmt: skip


def plan(
    model: str | Path,
    type: str | None = None,
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
) -> Plan:
    """What `model` becomes as `type`; nothing is written. Arguments and errors as `convert`, with
    the options and `calibrate` of `quantize`. `device` measures where a target asks for it, and
    reads the text.

    with gpukit.plan("llama", "Q4_K_M") as plan:
        print(plan.size)
        plan.write("llama.gguf")
    """
    options = options_of(options)
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
    device: Device,
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


def _check_calibration(text: str | Path | None, options: Options) -> None:
    if text is not None and options.imatrix is not None:
        raise ArgumentError(
            f"--calibrate and --imatrix {options.imatrix.path}: both are importance; give one"
        )
