"""Batches as the library shows them: run, looked at before, looked at meanwhile."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from gpukit.batches.evaluating import known
from gpukit.batches.matrix import expand
from gpukit.batches.measuring import evaluated
from gpukit.batches.opening import Inputs
from gpukit.batches.places import still_there, with_folders
from gpukit.batches.preparing import Prepared, Shard, in_shard, prepare
from gpukit.batches.pushing import left, pushed
from gpukit.batches.ray_cluster import run_on_ray
from gpukit.batches.reading import ReadPlan, read_plan
from gpukit.batches.result import BatchResult, Row, Watch, unwatched
from gpukit.batches.resuming import tidy
from gpukit.batches.running import Run
from gpukit.batches.shares import check_jobs
from gpukit.batches.states import State, standing, state_folder
from gpukit.batches.workers import run_workers
from gpukit.errors import ArgumentError, GpukitError
from gpukit.events import Report, ignore
from gpukit.formats.atomic import disk_errors


def batch(
    plan: str | Path,
    *,
    keep_going: bool = False,
    force: bool = False,
    shard: Shard | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    report: Report = ignore,
    watch: Watch = unwatched,
) -> BatchResult:
    """Make every result of the YAML file `plan` that is not made yet: what became of each job.

    A result that is there and whose journal says that it was made of the same is left alone; one
    that was made of something else is refused, or with `force` made anew. A job that fails ends the
    batch, or with `keep_going` only itself. When all are made, those are measured of which the plan
    wants that: what fails there leaves the result alone, and the next run tries again. Results are
    sent where the plan says as they are made; what could not be sent the next run sends. `shard`
    (I, N) takes every N-th source from the I-th on. `jobs` processes work at a time, each on what
    reads the same files, which share the cores; without it one for each GPU, or one. A process that
    dies is a job that failed. With `ray`, auto or the address of a Ray cluster, its nodes do the
    work, each with so many. `report` hears what comes before the
    first job, `watch` each job.
    `ArgumentError` for a plan that is wrong, that another process runs, or whose results are not
    its own; `DiskError` where results do not fit; and the errors of `gpukit.plan`, all before
    anything is written.

        gpukit.batch("plan.yaml", keep_going=True).failed
    """
    started = time.monotonic()
    check_jobs(jobs)
    read = read_plan(plan)
    with _alone(read, shard):
        prepared = prepare(read, shard, force, report, jobs if ray is None else 0)
        if prepared.error is not None:
            raise prepared.error
        tidy(read, prepared.standings)
        if ray is None:
            rows = _made(prepared, keep_going, watch)
        else:
            rows = run_on_ray(prepared, ray, jobs, keep_going, watch).rows
        told = sum(at.state.is_left for at in prepared.standings) + len(left(prepared, rows))
        rows = pushed(prepared, rows, keep_going, watch)
        rows = evaluated(prepared, rows, keep_going, watch, jobs=jobs, ray=ray, before=told)
    return replace(prepared.result, rows=tuple(rows), seconds=time.monotonic() - started)


def _made(prepared: Prepared, keep_going: bool, watch: Watch) -> list[Row]:
    """The rows of a batch when all is made that can be."""
    with with_folders(prepared) as placed:
        if placed.shares.workers > 1:
            return still_there(placed, run_workers(placed, keep_going, watch).rows)
        run = Run(placed, keep_going, watch)
        run.all()
        return still_there(placed, run.rows)


def plan_batch(
    plan: str | Path,
    *,
    force: bool = False,
    shard: Shard | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    report: Report = ignore,
) -> BatchResult:
    """What `batch` would do with the same arguments, with exact sizes; nothing is written. What
    would be refused is told in `refused`; a plan that is wrong is an error as there."""
    check_jobs(jobs)
    found = prepare(read_plan(plan), shard, force, report, jobs if ray is None else 0)
    rows = [
        known(found.read, at.job, row)
        for at, row in zip(found.standings, found.result.rows, strict=True)
    ]
    return replace(found.result, rows=tuple(rows))


def batch_status(
    plan: str | Path, *, shard: Shard | None = None, report: Report = ignore
) -> BatchResult:
    """How each job of a plan stands; no model is opened, and a batch may run meanwhile. Errors of a
    plan that is wrong as `batch`."""
    read = read_plan(plan)
    jobs, warnings = expand(read)
    inputs, rows = Inputs(report), []
    for job in in_shard(jobs, shard):
        try:
            at = standing(read, job, inputs)
        except GpukitError as error:
            rows.append(Row.of(job, State.FAILED, str(error)))
            continue
        rows.append(known(read, job, Row.of(job, at.state, at.why, at.size)))
    return BatchResult(read.document.path, tuple(rows), shard, warnings=tuple(warnings))


@contextmanager
def _alone(read: ReadPlan, shard: Shard | None) -> Iterator[None]:
    """Holds a plan against other processes; shards hold it together, each against its own kind."""
    folder = state_folder(read)
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        _lock(stack, read, folder / "lock", fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH)
        if shard is not None:
            name = f"lock-{shard[0]}-of-{shard[1]}"
            _lock(stack, read, folder / name, fcntl.LOCK_EX)
        yield


def _lock(stack: ExitStack, read: ReadPlan, path: Path, how: int) -> None:
    with disk_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArgumentError(
            f"{read.document.path}: another batch of this plan is running; wait for it, or start "
            "all with --shard I/N, each another I"
        ) from None
