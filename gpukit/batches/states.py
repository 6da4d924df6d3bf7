"""Which jobs are done, which are left, and which must not be touched."""

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpukit.batches.fingerprint import difference, fingerprint
from gpukit.batches.journal import Record, journal_of, last_record
from gpukit.batches.matrix import Job
from gpukit.batches.opening import Inputs
from gpukit.batches.reading import ReadPlan
from gpukit.formats.folder import file_names
from gpukit.formats.gguf_split import GGUFModel, part_of
from gpukit.store.store import Store


class State(StrEnum):
    """Of a job: what a run would do, does or has done."""

    TO_DO = "to do"
    MISSING = "missing"  # was done, and the result is gone
    FAILED = "failed"
    RUNNING = "running"
    EVALUATING = "evaluating"  # done, and now measured
    PUSHING = "pushing"  # done, and now sent
    DONE = "done"
    CHANGED = "changed"  # what is there is not what the plan would make

    @property
    def is_under_way(self) -> bool:
        """Whether a process is at it."""
        return self in (State.RUNNING, State.EVALUATING, State.PUSHING)

    @property
    def is_left(self) -> bool:
        """Whether a run makes the result."""
        return self in (State.TO_DO, State.MISSING, State.FAILED)


REMEDY = "remove it, or take --force to write it anew"
Identity = tuple[int, int, int]


@dataclass(frozen=True)
class Standing:
    """How a job stands: its state and why, its fingerprint, the bytes of a result that is there."""

    job: Job
    state: State
    why: str
    of: Mapping[str, Any]
    size: int | None = None


def journal_path(read: ReadPlan, job: Job) -> Path:
    """The journal of a job: beside its output, or for the store's models beside the plan."""
    if job.output is not None:
        return journal_of(job.output)
    return state_folder(read) / f"{quote(str(job.stored), safe='')}.gpukit.jsonl"


def state_folder(read: ReadPlan) -> Path:
    """Where a batch keeps what belongs to the plan and to no output: beside the plan."""
    return read.kept


def identity(job: Job) -> Identity | None:
    """Size, time of change in ns and inode of what is at a job's place; of several files the sum,
    the last and that of the first; None for nothing."""
    try:
        facts = [path.stat() for path in result_files(job)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sum(f.st_size for f in facts), max(f.st_mtime_ns for f in facts), facts[0].st_ino


def result_files(job: Job) -> list[Path]:
    """The files that a job's result is, whether they are there or not; of what may be split, those
    that are there, if any."""
    if job.output is None:
        return [_manifest(job)]
    if not job.is_split:
        return [job.output]
    stem, folder = job.output.name.removesuffix(".gguf"), job.output.parent
    names = sorted(file_names(folder)) if folder.is_dir() else []
    parts = [name for name in names if (part := part_of(name)) is not None and part[0] == stem]
    whole = [job.output] if job.output.exists() or not parts else []
    return [*whole, *(folder / name for name in parts)]


def _manifest(job: Job) -> Path:
    assert job.stored is not None
    return Store().manifest_path(job.stored)


def result_size(job: Job) -> int | None:
    """The bytes of a result that is there."""
    if job.stored is not None:
        return Store().describe(job.stored).size
    there = identity(job)
    return there[0] if there else None


def model_path(job: Job) -> Path:
    """The GGUF of a result that is there, or its first part."""
    if job.stored is not None:
        return Store().resolve(job.stored.display).gguf
    return result_files(job)[0]


def bits_per_weight(job: Job) -> float | None:
    """Those of a result that is there; None for a model without weights."""
    with GGUFModel(model_path(job)) as model:
        weights = sum(prod(tensor.ne) for tensor in model.tensors.values())
        nbytes = sum(tensor.nbytes for tensor in model.tensors.values())
    return round(8 * nbytes / weights, 4) if weights else None


def standing(read: ReadPlan, job: Job, inputs: Inputs) -> Standing:
    """How `job` stands; the errors of `Inputs`, `DiskError` for inputs that cannot be read and
    `FormatError` for a journal that is none."""
    of = fingerprint(job, inputs.source(job), inputs.adapters(job))
    path = journal_path(read, job)
    record = last_record(path)
    if record is not None and _is_held(path):
        return Standing(job, State.RUNNING, "another batch is making it", of)
    there = identity(job)
    if there is None:
        return Standing(job, *_absent(record), of)
    state, why = _present(record, there, of, in_store=job.stored is not None)
    return Standing(job, state, why, of, result_size(job) if state is State.DONE else None)


def _absent(record: Record | None) -> tuple[State, str]:
    if record is None or record.end is None:
        return State.TO_DO, ""
    if record.is_done:
        return State.MISSING, "it was made and is gone"
    return State.FAILED, str(record.end["error"])


def _present(
    record: Record | None, there: Identity, of: Mapping[str, Any], *, in_store: bool
) -> tuple[State, str]:
    """The state of a job whose result is there, or something that has its name."""
    if record is None:
        return State.CHANGED, "it is there, and no journal says that a batch has made it"
    # Numbers of files count for nothing: some file systems give them anew.
    as_before = record.before is not None and record.before[:2] == there[:2]
    if record.end is None and as_before:
        return State.TO_DO, ""
    if record.end is None:
        # Killed between the output's appearing and the journal's last line.
        if not in_store and record.size != there[0]:
            return State.CHANGED, f"it has {there[0]} bytes, {record.size} were to be written"
    elif not record.is_done:
        if as_before:
            return State.FAILED, str(record.end["error"])
        return State.CHANGED, "something else has written it"
    elif (record.end["size"], record.end["mtime_ns"]) != there[:2]:
        return State.CHANGED, "it has been written to since it was made"
    if told := difference(record.of, of):
        return State.CHANGED, f"{told} since it was made"
    return State.DONE, ""


def _is_held(path: Path) -> bool:
    """Whether a process is making the output of the journal at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(fd)
    return False
