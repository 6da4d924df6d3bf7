"""Convert and quantise in one pass: plan every tensor, then read, compute and write them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gpukit.conversion.checks import SAFETENSORS
from gpukit.conversion.engine import Wish
from gpukit.conversion.pipeline import Passed, run_pipeline
from gpukit.conversion.resumed_files import ResumedFiles
from gpukit.conversion.resuming import Resume, Resuming
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import SplitWriter, part_path
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.ledger import abandon
from gpukit.formats.outputs import check_output
from gpukit.formats.safetensors_writer import SafetensorsWriter
from gpukit.planning.changes import ChangeTotal, change_totals, faint
from gpukit.planning.plan import QuantizePlan
from gpukit.planning.totals import ClassTotal, TypeTotal, class_totals, type_totals
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device

AnyWriter = GGUFWriter | SplitWriter | SafetensorsWriter


@dataclass(frozen=True)
class Result:
    """What was written: the files, their size in bytes, the sha256 of a single one if asked for,
    the seconds it took, totals by type and by class of tensors, and by class what adapters did."""

    path: Path
    paths: tuple[Path, ...]
    size: int
    digest: str | None
    seconds: float
    weights: int
    read_bytes: int
    totals: tuple[TypeTotal, ...]
    classes: tuple[ClassTotal, ...]
    changes: tuple[ChangeTotal, ...] = ()

    @property
    def weights_per_second(self) -> float:
        return self.weights / max(self.seconds, 1e-9)

    @property
    def read_bytes_per_second(self) -> float:
        return self.read_bytes / max(self.seconds, 1e-9)

    @property
    def written_bytes_per_second(self) -> float:
        return self.size / max(self.seconds, 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; sizes in bytes, times in seconds."""
        return {
            "path": str(self.path),
            "paths": [str(path) for path in self.paths],
            "size": self.size,
            "seconds": round(self.seconds, 3),
            "weights": self.weights,
            "read_bytes": self.read_bytes,
            "weights_per_second": self.weights_per_second,
            "read_bytes_per_second": self.read_bytes_per_second,
            "written_bytes_per_second": self.written_bytes_per_second,
            "types": {total.type: total.as_json() for total in self.totals},
            "classes": {total.name: total.as_json() for total in self.classes},
            "changes": {total.name: total.as_json() for total in self.changes},
        }


def run_plan(
    source: Source,
    plan: QuantizePlan,
    out: Path,
    *,
    device: Device = "auto",
    budget: int = 4 << 30,
    digest: bool = False,
    engine: Wish = "auto",
    resume: Resume | None = None,
    report: Report = ignore,
) -> Result:
    """Write what `plan` describes to `out`, or to its parts, whole or not at all.

    A name that ends in .safetensors gets a safetensors file. `device` may name several GPUs with
    commas between. `budget` bounds the host memory of buffers, in bytes. `engine` says who computes
    the bytes, which are the same; "auto" does without torch where it can. With `resume` a
    killed run of the same is gone on with, as `Resuming` says it, and so is this one by a later
    run; without it what there is of one goes. `CheckpointError` for
    values that are not finite, `DiskError` where the disk refuses, and the errors of the source's
    reader.
    """
    paths = output_paths(out, plan)
    for path in paths:
        check_output(path, source.files)
    for line in plan.warnings:
        report(Warned(line))
    started = time.monotonic()
    writer, resumed = writer_of(out, plan, digest=digest), None
    if resume is None:
        abandon(out)
    else:
        resumed = ResumedFiles([Resuming(out, writer, plan.outputs, resume, report)])
    with resumed or writer as target:
        passed = run_pipeline(
            source, plan.outputs, target, plan.title, device, budget, report, engine, resumed
        )
    if out.suffix != SAFETENSORS:
        report(Status("verifying conversion"))
    result = result_of(out, plan, passed, time.monotonic() - started, writer.digest)
    for line in faint(result.changes):
        report(Warned(line))
    return result


def result_of(
    out: Path, plan: QuantizePlan, passed: Passed, seconds: float, digest: str | None = None
) -> Result:
    """What to tell of a plan that has been written to `out`, which is looked at once more."""
    paths = output_paths(out, plan)
    carried = frozenset(
        number
        for number, (output, change) in enumerate(zip(plan.outputs, passed.changes, strict=True))
        if output.is_carried and not change.count
    )
    if out.suffix != SAFETENSORS:
        _check_written(paths, plan)
    return Result(
        path=paths[0],
        paths=tuple(paths),
        size=sum(path.stat().st_size for path in paths),
        digest=digest,
        seconds=seconds,
        weights=sum(prod(spec.ne) for spec in plan.specs),
        read_bytes=passed.read_bytes,
        totals=tuple(type_totals(plan.specs, passed.fidelity)),
        classes=tuple(class_totals(plan.specs, passed.fidelity, carried)),
        changes=tuple(change_totals(plan.specs, passed.changes)),
    )


def output_paths(out: Path, plan: QuantizePlan) -> list[Path]:
    """The files that `run_plan` writes for `out`."""
    count = len(plan.parts)
    return [out] if count == 1 else [part_path(out, number, count) for number in range(count)]


def writer_of(out: Path, plan: QuantizePlan, *, digest: bool = False) -> AnyWriter:
    """What writes `plan` to `out`, not open yet."""
    if out.suffix == SAFETENSORS:
        return SafetensorsWriter(out, plan.specs, digest=digest)
    if len(plan.parts) > 1:
        return SplitWriter(out, plan.fields, plan.specs, plan.parts)
    return GGUFWriter(out, plan.fields, plan.specs, digest=digest)


def _check_written(paths: Sequence[Path], plan: QuantizePlan) -> None:
    for path, wanted in zip(paths, plan.parts, strict=True):
        with GGUFFile(path) as written:
            if len(written.tensors) != wanted:
                raise AssertionError(f"{path}: {len(written.tensors)} of {wanted} tensors")
