"""The folders that results go to: a batch writes where it began to, or not at all.

A folder that is removed, renamed or unmounted while a batch runs would come back as an empty one of
the same name, on whatever disk is below: what was done would be missing, and the rest elsewhere.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gpukit.batches.matrix import Job
from gpukit.batches.preparing import Prepared
from gpukit.batches.result import Row
from gpukit.batches.states import Identity, State, identity
from gpukit.errors import DiskError

# A folder's file system and number.
Place = tuple[int, int]


def with_folders(prepared: Prepared) -> Prepared:
    """The same with the folders of what is left, which are made. One that cannot be made is left
    out: the job that needs it tells why."""
    folders = _folders(prepared)
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    return replace(prepared, places=_seen(folders))


def as_seen_here(prepared: Prepared) -> Prepared:
    """The same on another machine, where a file system may have another number; nothing is
    made."""
    return replace(prepared, places=_seen(_folders(prepared)))


def folders_of(prepared: Prepared) -> Sequence[Path]:
    """The folders that were there when the batch began."""
    return list(prepared.places)


def is_there(prepared: Prepared, job: Job) -> bool:
    """Whether the folder of a job's result is still the one that the batch began with."""
    folder = _folder(job)
    known = prepared.places.get(folder) if folder is not None else None
    return folder is None or known is None or _seen([folder]).get(folder) == known


def check_place(prepared: Prepared, job: Job) -> None:
    """`DiskError` where it is not."""
    if not is_there(prepared, job):
        raise DiskError(_lost(job))


def check_result(prepared: Prepared, job: Job) -> Identity:
    """What a result that was made is; `DiskError` where it is not there any more."""
    found = identity(job)
    if found is None:
        raise DiskError(_gone(prepared, job))
    return found


def still_there(prepared: Prepared, rows: Sequence[Row]) -> list[Row]:
    """`rows`, in which results have failed that were made and are not there any more."""
    jobs = {at.job.target: at.job for at in prepared.standings}
    found = []
    for row in rows:
        if row.made and identity(jobs[row.output]) is None:
            why = _gone(prepared, jobs[row.output])
            found.append(replace(row, state=State.FAILED, made=False, why=why))
        else:
            found.append(row)
    return found


def _lost(job: Job) -> str:
    return (
        f"{job.target}: {_folder(job)} is not the folder that the batch began with: it was "
        "removed, renamed or unmounted; bring it back and start the batch again, which goes on"
    )


def _gone(prepared: Prepared, job: Job) -> str:
    if not is_there(prepared, job):
        return _lost(job)
    return f"{job.target}: it was made, and is gone; start the batch again"


def _folders(prepared: Prepared) -> list[Path]:
    found = [_folder(at.job) for at in prepared.standings if at.state.is_left]
    return list(dict.fromkeys(folder for folder in found if folder is not None))


def _folder(job: Job) -> Path | None:
    return job.output.parent if job.output is not None else None


def _seen(folders: Sequence[Path]) -> Mapping[Path, Place]:
    found = {}
    for folder in folders:
        with suppress(OSError):
            facts = folder.stat()
            found[folder] = (facts.st_dev, facts.st_ino)
    return found
