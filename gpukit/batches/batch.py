"""Batches as the library shows them: run, looked at before, looked at meanwhile."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from gpukit.batches.matrix import expand
from gpukit.batches.opening import Inputs
from gpukit.batches.preparing import Shard, in_shard, prepare
from gpukit.batches.reading import ReadPlan, read_plan
from gpukit.batches.result import BatchResult, Row, Watch, unwatched
from gpukit.batches.running import Run
from gpukit.batches.states import State, standing, state_folder
from gpukit.errors import ArgumentError, GpukitError
from gpukit.events import Report, ignore
from gpukit.formats.atomic import disk_errors


def batch(
    plan: str | Path,
    *,
    keep_going: bool = False,
    force: bool = False,
    shard: Shard | None = None,
    report: Report = ignore,
    watch: Watch = unwatched,
) -> BatchResult:
    """Make every result of the YAML file `plan` that is not made yet: what became of each job.

    A result that is there and whose journal says that it was made of the same is left alone; one
    that was made of something else is refused, or with `force` made anew. A job that fails ends the
    batch, or with `keep_going` only itself. `shard` (I, N) takes every N-th source from the I-th
    on. `report` hears what comes before the first job, `watch` each job.
    `ArgumentError` for a plan that is wrong, that another process runs, or whose results are not
    its own; `DiskError` where results do not fit; and the errors of `gpukit.plan`, all before
    anything is written.

        gpukit.batch("plan.yaml", keep_going=True).failed
    """
    started = time.monotonic()
    read = read_plan(plan)
    with _alone(read, shard):
        prepared = prepare(read, shard, force, report)
        if prepared.error is not None:
            raise prepared.error
        run = Run(prepared, keep_going, watch)
        run.all()
    seconds = time.monotonic() - started
    return replace(prepared.result, rows=tuple(run.rows), seconds=seconds)


def plan_batch(
    plan: str | Path,
    *,
    force: bool = False,
    shard: Shard | None = None,
    report: Report = ignore,
) -> BatchResult:
    """What `batch` would do with the same arguments, with exact sizes; nothing is written. What
    would be refused is told in `refused`; a plan that is wrong is an error as there."""
    return prepare(read_plan(plan), shard, force, report).result


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
        rows.append(Row.of(job, at.state, at.why, at.size))
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
