"""A plan looked at before anything is made: what is left, how large it gets, whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpukit.batches import needs
from gpukit.batches.matrix import Job, expand
from gpukit.batches.opening import Inputs, opened, planned, together
from gpukit.batches.reading import ReadPlan
from gpukit.batches.result import BatchResult, Row
from gpukit.batches.states import REMEDY, Standing, State, standing
from gpukit.errors import ArgumentError, GpukitError
from gpukit.events import Report, Warned
from gpukit.formats.outputs import check_output
from gpukit.sources.base import Source

# One of how many.
Shard = tuple[int, int]
# A job with the bytes that it will write, those of its buffers, and what is wrong with it.
Looked = tuple[Standing, int | None, int, GpukitError | None]


@dataclass(frozen=True)
class Prepared:
    """The jobs as they stand, the first error, and all that is known as a table."""

    read: ReadPlan
    inputs: Inputs
    standings: tuple[Standing, ...]
    error: GpukitError | None
    result: BatchResult


def shard_of(text: str) -> Shard:
    """The shard `I/N`, I from 1 to N; `ArgumentError` for any other text."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ArgumentError(f"--shard {text[:40]}: I/N is needed, I from 1 to N, as in 1/4")
    return int(number), int(count)


def prepare(read: ReadPlan, shard: Shard | None, force: bool, report: Report) -> Prepared:
    """Everything that can be known of a plan without reading a weight. Of faults that one job has
    the table tells, and `error` is the first; all others are raised."""
    jobs, warnings = expand(read)
    for line in warnings:
        report(Warned(line))
    jobs = in_shard(jobs, shard)
    inputs = Inputs(report)
    standings, rows, errors = [], [], []
    sizes: list[tuple[Job, int]] = []
    wanted: list[int] = []
    for run in together(jobs):
        found = [_allowed(standing(read, job, inputs), force) for job in run]
        planned_run = _planned(found, inputs, report)
        for at, size, buffers, error in planned_run:
            standings.append(at)
            error = error or _refusal(at)
            why = str(error) if error and at.state.is_left else at.why
            rows.append(Row.of(at.job, at.state, why, size))
            if error is not None:
                errors.append(error)
            elif at.state.is_left and size is not None:
                sizes.append((at.job, size))
                wanted.append(buffers)
    disks, memory = needs.disk_needs(sizes), needs.memory_need(wanted)
    if not errors:
        try:
            needs.check(disks, memory)
        except GpukitError as error:
            errors.append(error)
    result = BatchResult(
        read.document.path, tuple(rows), shard, tuple(disks), memory, tuple(warnings),
        tuple(map(str, errors)),
    )  # fmt: skip
    return Prepared(read, inputs, tuple(standings), errors[0] if errors else None, result)


def in_shard(jobs: Sequence[Job], shard: Shard | None) -> list[Job]:
    """The jobs of every N-th source, from the I-th on: what reads the same stays together."""
    if shard is None:
        return list(jobs)
    number, count = shard
    return [job for job in jobs if job.group % count == number - 1]


def _allowed(at: Standing, force: bool) -> Standing:
    """With `force` what has changed is made anew."""
    if force and at.state is State.CHANGED:
        return replace(at, state=State.TO_DO, why=f"{at.why}; made anew")
    return at


def _refusal(at: Standing) -> GpukitError | None:
    if at.state is State.CHANGED:
        return ArgumentError(f"{at.job.target}: {at.why}; {REMEDY}")
    if at.state is State.RUNNING:
        return ArgumentError(f"{at.job.target}: {at.why}; wait for that")
    return None


def _planned(run: Sequence[Standing], inputs: Inputs, report: Report) -> list[Looked]:
    """Jobs that read the same, looked at. Nothing is opened where nothing is left."""
    if not any(at.state.is_left for at in run):
        return [(at, at.size, 0, None) for at in run]
    try:
        with opened(run[0].job, inputs, report) as source:
            return [_sized(at, source, report) for at in run]
    except GpukitError as error:
        return [(at, at.size, 0, error if at.state.is_left else None) for at in run]


def _sized(at: Standing, source: Source, report: Report) -> Looked:
    if not at.state.is_left:
        return at, at.size, 0, None
    try:
        _check_place(at.job, source.files)
        plan = planned(source, at.job, report)
    except GpukitError as error:
        return at, None, 0, error
    return at, plan.size, needs.buffers(at.job, plan), None


def _check_place(job: Job, files: Sequence[Path]) -> None:
    """Errors of `check_output`; a folder that is not there is made when the batch begins."""
    if job.output is not None and job.output.parent.exists():
        check_output(job.output, files)
    if job.stored is not None and any(weight != 1 for _, weight in job.adapter.adapters):
        raise ArgumentError(
            f"{job.target}: the store's models take adapters with weight 1 only; leave the weight "
            "out, or write a file with `output`"
        )
