"""The folders that results go to: a batch writes where it began to, or not at all.

A folder that is removed, renamed or unmounted while a batch runs would come back as an empty one of
the same name, on whatever disk is below: what was done would be missing, and the rest elsewhere.

A folder is known by its file system and number. Some file systems (of FUSE, of networks, overlays)
give a folder another number when they have forgotten it, so while a batch runs each has a mark, an
empty file of a temporary name: where that is, the folder is the same, whatever its number.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from gpukit.batches.matrix import Job
from gpukit.batches.preparing import Prepared
from gpukit.batches.result import Row
from gpukit.batches.states import Identity, State, identity
from gpukit.errors import DiskError
from gpukit.formats import atomic

# A folder's file system and number, and what its mark is called, if it could be made.
Place = tuple[int, int, str]


@contextmanager
def with_folders(prepared: Prepared) -> Iterator[Prepared]:
    """The same with the folders of what is left, which are made, and marked until the end of the
    block. One that cannot be made is left out: the job that needs it tells why."""
    marks: dict[Path, str] = {}
    try:
        for folder in _folders(prepared):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                marks[folder] = _marked(folder)
        yield replace(prepared, places=_seen(marks))
    finally:
        for folder, name in marks.items():
            with suppress(OSError):
                atomic.remove(folder / name)


def _marked(folder: Path) -> str:
    """The name of a new mark in `folder`; where none can be made, that of nothing."""
    mark = atomic.temporary_name(folder / "batch")
    with suppress(OSError):
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    return mark.name


def as_seen_here(prepared: Prepared) -> Prepared:
    """The same on another machine, where a file system may have another number; nothing is
    made."""
    return replace(prepared, places=_seen({f: name for f, (*_, name) in prepared.places.items()}))


def folders_of(prepared: Prepared) -> Sequence[Path]:
    """The folders that were there when the batch began."""
    return list(prepared.places)


def is_there(prepared: Prepared, job: Job) -> bool:
    """Whether the folder of a job's result is still the one that the batch began with."""
    folder = _folder(job)
    known = prepared.places.get(folder) if folder is not None else None
    if folder is None or known is None:
        return True
    *_, name = known
    return _seen({folder: name}).get(folder) == known or _has_mark(folder / name)


def _has_mark(mark: Path) -> bool:
    if not mark.is_file():
        return False
    with suppress(OSError):
        # To other machines one that is a day old is nobody's.
        os.utime(mark)
    return True


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


def _seen(marks: Mapping[Path, str]) -> Mapping[Path, Place]:
    """Folders as they are now, by their marks."""
    found = {}
    for folder, name in marks.items():
        with suppress(OSError):
            facts = folder.stat()
            found[folder] = (facts.st_dev, facts.st_ino, name)
    return found
