"""Who measures the results of a batch: this process, several of this machine, or a cluster."""

from collections.abc import Sequence
from dataclasses import replace

from gpukit.batches.evaluating import Evaluation, is_left, known
from gpukit.batches.evaluations import host_bytes, spread
from gpukit.batches.gathering import Gathered
from gpukit.batches.matrix import Job
from gpukit.batches.portions import Portion, portion_of
from gpukit.batches.preparing import Prepared
from gpukit.batches.ray_cluster import portions_on_ray
from gpukit.batches.result import Row, Watch
from gpukit.batches.shares import free_on_gpus, shares
from gpukit.batches.states import State
from gpukit.batches.workers import run_portions


def evaluated(
    prepared: Prepared,
    rows: Sequence[Row],
    keep_going: bool,
    watch: Watch,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    before: int = 0,
) -> list[Row]:
    """`rows` of a batch that is through, with what measuring the results gives; without
    `keep_going` nothing is measured after the first failure. `jobs` and `ray` as `batch`; so many
    jobs have been told of `before`."""
    at = prepared.standings
    found = [known(prepared.read, each.job, row) for each, row in zip(at, rows, strict=True)]
    now = replace(prepared, result=replace(prepared.result, rows=tuple(found)))
    left = [each.job for each, row in zip(at, found, strict=True) if is_left(row)]
    if not left or (not keep_going and any(row.state is State.FAILED for row in found)):
        return found
    if ray is None and (jobs == 1 or len(spread(left)) == 1):
        return _here(now, keep_going, watch, before)
    portions = _portions(now, left, keep_going)
    gathered = Gathered(now, watch, before, len(left))
    if ray is not None:
        return portions_on_ray(portions, gathered, ray, jobs, keep_going).rows
    devices = [portion.standings[0].job.options.device for portion in portions]
    crew = shares(jobs, devices, len(free_on_gpus(devices)))
    if crew.workers == 1:
        return _here(now, keep_going, watch, before)
    run_portions(crew, portions, gathered, keep_going)
    return gathered.rows


def _here(now: Prepared, keep_going: bool, watch: Watch, before: int) -> list[Row]:
    work = Evaluation(now, keep_going, watch, before)
    work.all()
    return list(work.rows.values())


def _portions(now: Prepared, left: Sequence[Job], keep_going: bool) -> list[Portion]:
    """What one process measures each, with the memory that it takes."""
    by_number = {at.job.number: at for at in now.standings}
    sizes = {row.output: row.size or 0 for row in now.result.rows}
    memory = {job.number: host_bytes(job, sizes[job.target], now.inputs) for job in left}
    whole = replace(now, buffers=memory)
    return [
        portion_of(whole, [by_number[job.number] for job in group], keep_going, measures=True)
        for group in spread(left)
    ]
