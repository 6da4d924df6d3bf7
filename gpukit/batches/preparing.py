"""A plan looked at before anything is made: what is left, how large it gets, whether it fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpukit.batches import needs
from gpukit.batches.calibrating import foreseen
from gpukit.batches.evaluations import evaluation_of, memory_to_measure, wanted
from gpukit.batches.foreign import check_evaluated
from gpukit.batches.journal import last_record
from gpukit.batches.matrix import Job, expand
from gpukit.batches.opening import Inputs, gathered, opened, planned, together
from gpukit.batches.reading import ReadPlan
from gpukit.batches.result import BatchResult, Row
from gpukit.batches.shares import ALONE, Shares, free_on_gpus, shares
from gpukit.batches.states import REMEDY, Standing, State, journal_path, standing
from gpukit.errors import ArgumentError, GpukitError
from gpukit.events import Report, Warned
from gpukit.formats.ledger import held
from gpukit.formats.outputs import check_output
from gpukit.sources.base import Source
from gpukit_kernels.cpu.plain import is_cpu

# One of how many.
Shard = tuple[int, int]
# Bytes of a job's buffers on the host, and of all that it takes of a GPU.
Buffers = tuple[int, int]
NOTHING: Buffers = (0, 0)
# A job with the bytes that it will write, those of its buffers, and what is wrong with it.
Looked = tuple[Standing, int | None, Buffers, GpukitError | None]


@dataclass(frozen=True)
class Prepared:
    """The jobs as they stand, the first error, and all that is known as a table; who will make
    them, and the bytes of host memory that each takes for buffers, by its number. `places` are the
    folders that results go to, as `places.py` knows them."""

    read: ReadPlan
    inputs: Inputs
    standings: tuple[Standing, ...]
    error: GpukitError | None
    result: BatchResult
    shares: Shares = ALONE
    buffers: Mapping[int, int] = field(default_factory=dict)
    places: Mapping[Path, tuple[int, int, str]] = field(default_factory=dict)


def shard_of(text: str) -> Shard:
    """The shard `I/N`, I from 1 to N; `ArgumentError` for any other text."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ArgumentError(f"--shard {text[:40]}: I/N is needed, I from 1 to N, as in 1/4")
    return int(number), int(count)


def prepare(
    read: ReadPlan, shard: Shard | None, force: bool, report: Report, jobs: int | None = 1
) -> Prepared:
    """Everything that can be known of a plan without reading a weight. Of faults that one job has
    the table tells, and `error` is the first; all others are raised.

    `jobs` is the number of workers that are asked for, as `shares` takes it; 0 if others than this
    machine do the work, whose memory is not asked about."""
    found_jobs, warnings = expand(read)
    for line in warnings:
        report(Warned(line))
    inputs = Inputs(report)
    standings, rows, errors = [], [], []
    sizes: list[tuple[Job, int]] = []
    buffers_of: dict[int, Buffers] = {}
    left: list[Job] = []
    results: list[tuple[Job, int]] = []
    for run in together(in_shard(found_jobs, shard)):
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
                there = held(at.job.output) if at.job.output is not None else 0
                sizes.append((at.job, max(size - there, 0)))
                buffers_of[at.job.number] = buffers
                left.append(at.job)
            if error is None and size is not None and _is_to_measure(read, at):
                results.append((at.job, size))
    disks = needs.disk_needs(sizes)
    crew, memory, gpus = _shared(jobs, gathered(left), buffers_of)
    memory = _larger(memory, _to_measure(jobs, results, inputs, crew.gpus))
    if not errors:
        try:
            needs.check(disks, memory, gpus)
        except GpukitError as error:
            errors.append(error)
    result = BatchResult(
        read.document.path, tuple(rows), shard, tuple(disks), memory, tuple(warnings),
        tuple(map(str, errors)), workers=crew.workers, gpus=tuple(gpus),
    )  # fmt: skip
    return Prepared(
        read, inputs, tuple(standings), errors[0] if errors else None, result, crew,
        {number: host for number, (host, _) in buffers_of.items()},
    )  # fmt: skip


def _shared(
    jobs: int | None, groups: Sequence[Sequence[Job]], wanted: Mapping[int, Buffers]
) -> tuple[Shares, needs.Need | None, list[needs.Need]]:
    """Who makes groups of jobs, and what they need of memory and of each GPU."""
    if jobs == 0 or not groups:
        return ALONE, None, []
    devices = [group[0].options.device for group in groups]
    passes = [needs.in_one_pass(group, [wanted[job.number] for job in group]) for group in groups]
    on_gpus = [(device, gpu) for device, (_, gpu) in zip(devices, passes, strict=True)]
    free = free_on_gpus([device for device, _ in on_gpus])
    crew = shares(jobs, devices, len(free))
    memory = needs.memory_need((host for host, _ in passes), crew.workers)
    return crew, memory, needs.device_needs(on_gpus, crew, free)


def _is_to_measure(read: ReadPlan, at: Standing) -> bool:
    """Whether a run measures the result of a job."""
    if at.job.evaluate is None or not (at.state is State.DONE or at.state.is_left):
        return False
    record = last_record(journal_path(read, at.job)) if at.state is State.DONE else None
    return str(evaluation_of(record, wanted(at.job))["state"]) != State.DONE.value


def _to_measure(
    jobs: int | None, results: Sequence[tuple[Job, int]], inputs: Inputs, gpus: int
) -> needs.Need | None:
    """What models of `results` need of this machine's memory: those that a GPU takes pass through
    it."""
    here = [(job, size) for job, size in results if not gpus or is_cpu(job.options.device)]
    if jobs == 0 or not here:
        return None
    memory = memory_to_measure(here, inputs)
    return needs.memory_need(memory, min(jobs or 1, len(memory)), needs.MODELS)


def _larger(one: needs.Need | None, other: needs.Need | None) -> needs.Need | None:
    found = [need for need in (one, other) if need is not None]
    return max(found, key=lambda need: need.needed, default=None)


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
        return [(at, at.size, NOTHING, None) for at in run]
    try:
        with opened(run[0].job, inputs, report) as source:
            left = sum(at.state.is_left for at in run)
            return [_sized(at, source, left, inputs, report) for at in run]
    except GpukitError as error:
        return [(at, at.size, NOTHING, error if at.state.is_left else None) for at in run]


def _sized(
    at: Standing, source: Source, made_together: int, inputs: Inputs, report: Report
) -> Looked:
    if not at.state.is_left:
        return at, at.size, NOTHING, None
    try:
        _check_place(at.job, source.files)
        if at.job.evaluate is not None:
            check_evaluated(source, at.job.target)
        plan = planned(source, at.job, inputs, report, foreseen(at.job, inputs))
    except GpukitError as error:
        return at, None, NOTHING, error
    buffers = (needs.buffers(at.job, plan), needs.on_device(at.job, plan, made_together))
    return at, plan.size, buffers, None


def _check_place(job: Job, files: Sequence[Path]) -> None:
    """Errors of `check_output`; a folder that is not there is made when the batch begins."""
    if job.output is not None and job.output.parent.exists():
        check_output(job.output, files)
    if job.stored is not None and any(weight != 1 for _, weight in job.adapter.adapters):
        raise ArgumentError(
            f"{job.target}: the store's models take adapters with weight 1 only; leave the weight "
            "out, or write a file with `output`"
        )
