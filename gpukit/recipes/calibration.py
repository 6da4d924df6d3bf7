"""Importance that is collected on the way to a quantised model, and kept in memory only."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from gpukit.conversion.origins import Origin
from gpukit.conversion.wishes import Wishes
from gpukit.errors import ArgumentError
from gpukit.evaluation.collecting import Reading, collect, prepare
from gpukit.evaluation.windows import NUM_CTX
from gpukit.events import Report
from gpukit.formats.imatrix import Imatrix, as_imatrix
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.planning.targets import candidates, plan_target
from gpukit.sources.base import Source
from gpukit.sources.merged import Merge
from gpukit.sources.opening import open_source
from gpukit_kernels.devices import Device, device_name

# What messages call a text that is in no file.
TEXT = Path("the text")


def check_calibration(text: str | Path | None, quantize: str | None, imatrix: Path | None) -> None:
    """`ArgumentError` for a text that is of no use."""
    if text is None:
        return
    if not quantize:
        raise ArgumentError("--calibrate: importance is for quantising; add -q TYPE")
    if imatrix is not None:
        raise ArgumentError(f"--calibrate and --imatrix {imatrix}: both are importance; give one")


def calibrated(
    path: Path, work: Wishes, text: str | Path, opened: Callable[[Wishes], Origin], *, dry: bool
) -> Wishes:
    """`work` with the importance that the model at `path`, adapters and all, has while it reads
    `text`, which is a `Path` where it is in a file.

    What is wrong with the work, which `opened` begins, shows before the text is read, as does an
    importance that nothing would look at (`ArgumentError`); a `dry` run does not read it, and has
    the importance of all that would be heard as 1.
    """
    reading = prepare(
        path, [text], NUM_CTX, pre=work.pre, adapters=work.merge, option="", report=work.report
    )  # fmt: skip
    where = text if isinstance(text, Path) else TEXT
    rehearsed = replace(work, imatrix=foreseen(reading, where))
    if dry:
        return rehearsed
    with closing(opened(rehearsed)) as origin:
        _check_used([origin.foresee().plan])
    return replace(work, imatrix=_heard(reading, where, work.device, work.report))


def options_with(
    path: Path,
    text: str | Path,
    options: Options,
    file_types: Sequence[str | None],
    *,
    pre: str | None,
    merge: Merge | None,
    device: Device,
    report: Report,
) -> Options:
    """`options` with the importance that the model at `path` has while it reads `text`, to become
    each of `file_types` or what they choose instead. What is wrong with that shows before the text
    is read; `ArgumentError` also where nothing would look at the importance."""
    reading = prepare(path, [text], NUM_CTX, pre=pre, adapters=merge, option="", report=report)
    where = text if isinstance(text, Path) else TEXT
    with open_source(path, pre, merge, mtp=options.mtp) as source:
        rehearsed = replace(options, imatrix=foreseen(reading, where))
        plans = [_rehearsed(source, file_type, rehearsed) for file_type in file_types]
    _check_used(plans)
    return replace(options, imatrix=_heard(reading, where, device, report))


def _check_used(plans: Sequence[QuantizePlan]) -> None:
    if all(output.importance is None for plan in plans for output in plan.outputs):
        raise ArgumentError(
            "--calibrate: no tensor becomes a type that takes importance; leave it out"
        )


def _rehearsed(source: Source, file_type: str | None, options: Options) -> QuantizePlan:
    """A plan of the same tensors and, with a target, within the same size, for which no weights are
    looked at."""
    if options.target is None:
        return plan_quantize(source, file_type, options)
    free = candidates(source, options)
    return plan_target(source, options, free, [[0.0] * len(tensor.types) for tensor in free])


def _heard(reading: Reading, where: Path, device: Device, report: Report) -> Imatrix:
    one = device_name(device).partition(",")[0]  # texts are read on one
    found = collect(reading, one, report=report)
    return replace(as_imatrix(found, where), is_file=False)


def foreseen(reading: Reading, where: Path) -> Imatrix:
    """The importance of all that `reading` would hear, as 1; `where` is what messages call it."""
    entries = {
        name: np.ones(spec.ne[0] * prod(spec.ne[2:3]), np.float32)
        for name, spec in reading.tensors.items()
        if name.startswith("blk.") and len(spec.ne) > 1 and not reading.unused.has(name)
    }
    dataset = reading.texts[0] if reading.texts else ""
    return Imatrix(where, entries, dataset, reading.chunks, is_file=False)
