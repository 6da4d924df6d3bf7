"""Many files from one pass: each tensor is read and made once, and encoded once for all outputs
that want the same of it."""

import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Self

from gpukit.conversion.engine import Wish
from gpukit.conversion.pipeline import Passed, run_pipeline
from gpukit.conversion.resumed_files import ResumedFiles
from gpukit.conversion.resuming import Resume, Resuming
from gpukit.conversion.run import AnyWriter, Result, output_paths, result_of, writer_of
from gpukit.errors import ArgumentError
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats import atomic
from gpukit.formats.ledger import abandon
from gpukit.formats.outputs import check_output
from gpukit.formats.placed_writer import PlacedWriter
from gpukit.formats.placed_writers import PlacedWriters
from gpukit.formats.room import check_room
from gpukit.planning.changes import faint
from gpukit.planning.plan import PlannedOutput, QuantizePlan
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device


def run_plans(
    source: Source,
    plans: Sequence[QuantizePlan],
    outs: Sequence[Path],
    *,
    device: Device = "auto",
    budget: int = 4 << 30,
    engine: Wish = "auto",
    resume: Sequence[Resume] | None = None,
    report: Report = ignore,
) -> list[Result]:
    """Write what each of `plans`, all of `source`, describes to its place in `outs`, in one pass;
    each file as `run_plan` would write it, and none of them before all are complete.

    With `resume`, of each output, killed runs are gone on with, as `run_plan` does it.
    Seconds and bytes read are in every result those of the whole pass. Arguments and errors as
    `run_plan`, and `ArgumentError` for two outputs at one place. After an error there is none.
    """
    paths = [path for o, plan in zip(outs, plans, strict=True) for path in output_paths(o, plan)]
    check_distinct(paths)
    for path in paths:
        check_output(path, source.files)
    _warn([line for plan in plans for line in plan.warnings], report)
    started = time.monotonic()
    outputs, numbers = shared_outputs(plans)
    writers = [writer_of(out, plan) for out, plan in zip(outs, plans, strict=True)]
    files: _Files | ResumedFiles = _Files(writers, numbers, len(outputs))
    kept = None
    if resume is None:
        for out in outs:
            abandon(out)
    else:
        kept = files = ResumedFiles([
            Resuming(out, writer, plan.outputs, wish, report, own)
            for out, writer, plan, wish, own in zip(
                outs, writers, plans, resume, numbers, strict=True
            )
        ])  # fmt: skip
    with files:
        passed = run_pipeline(
            source, outputs, files, _title(source, plans), device, budget, report, engine, kept
        )
    report(Status("verifying conversion"))
    results = [
        result_of(out, plan, _of(passed, own), time.monotonic() - started)
        for out, plan, own in zip(outs, plans, numbers, strict=True)
    ]
    _warn([line for result in results for line in faint(result.changes)], report)
    return results


def shared_outputs(
    plans: Sequence[QuantizePlan],
) -> tuple[list[PlannedOutput], list[list[int]]]:
    """All that is encoded for `plans`, what is made of one tensor beside each other, and for each
    plan the numbers of its own outputs there.

    Two outputs are one where tensor, type and importance agree: their bytes do, too.
    """
    found: dict[int, dict[object, PlannedOutput]] = {}
    keys = [[(output.index, _key(output)) for output in plan.outputs] for plan in plans]
    for plan, own in zip(plans, keys, strict=True):
        for output, (index, key) in zip(plan.outputs, own, strict=True):
            found.setdefault(index, {}).setdefault(key, output)
    order = [(index, key) for index, of_one in found.items() for key in of_one]
    number = {key: i for i, key in enumerate(order)}
    outputs = [found[index][key] for index, key in order]
    return outputs, [[number[key] for key in own] for own in keys]


def _key(output: PlannedOutput) -> object:
    importance = output.importance
    return output.spec.type, None if importance is None else importance.tobytes()


def check_distinct(paths: Sequence[Path]) -> None:
    """`ArgumentError` for two outputs that would be one file."""
    seen: dict[Path, Path] = {}
    for path in paths:
        place = atomic.target_of(path).absolute()
        if (other := seen.get(place)) is not None:
            raise ArgumentError(f"{path}: the place of {other}, too; give each output its own")
        seen[place] = path


def _warn(lines: Sequence[str], report: Report) -> None:
    """Tell the user each line once."""
    for line in dict.fromkeys(lines):
        report(Warned(line))


def _title(source: Source, plans: Sequence[QuantizePlan]) -> str:
    if len(plans) == 1:
        return plans[0].title
    names = dict.fromkeys(plan.file_type.name if plan.file_type else "its own" for plan in plans)
    return f"quantizing {source.label} model to {', '.join(names)}"


def _of(passed: Passed, numbers: Sequence[int]) -> Passed:
    """What went through, as far as it concerns the outputs `numbers`."""
    return Passed(
        passed.read_bytes,
        tuple(passed.fidelity[number] for number in numbers),
        tuple(passed.changes[number] for number in numbers),
    )


class _Files(PlacedWriters):
    """All files of all `outs` being written as one: `write` puts the bytes of a shared output, by
    `numbers` of each of `outs`, wherever they belong."""

    def __init__(
        self, outs: Sequence[AnyWriter], numbers: Sequence[Sequence[int]], count: int
    ) -> None:
        super().__init__(file for out in outs for file in files_of(out))
        self._at: list[list[int]] = [[] for _ in range(count)]
        begins = accumulate((len(own) for own in numbers), initial=0)
        for begin, own in zip(begins, numbers, strict=False):
            for place, number in enumerate(own, begin):
                self._at[number].append(place)

    def write(self, index: int, data: bytes | bytearray | memoryview, start: int = 0) -> None:
        for place in self._at[index]:
            super().write(place, data, start)

    def __enter__(self) -> Self:
        check_room(self.writers)
        return super().__enter__()


def files_of(out: AnyWriter) -> Sequence[PlacedWriter]:
    """The files of one output."""
    return out.writers if isinstance(out, PlacedWriters) else (out,)
