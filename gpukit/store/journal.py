"""Jobs: work on a store that leaves no trace when it is killed.

    .gpukit/                 the scratch place: beside blobs/, never inside, where Ollama prunes
      lock                   held for the short steps that must not overlap (claim, publish, settle)
      <pid>-<random>/        one job
        journal              locked by the job as long as it lives; its lines, see `Entry`
        …                    unfinished files

A job writes a line before it does the thing. When it ends, in whatever way, the blobs it is
answerable for that no manifest mentions are removed: by itself or, if it was killed, by the next
command, which sees that nobody holds the journal's lock. A blob that a living job claims stays;
then the dead job's journal stays too, so that nothing is forgotten.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from gpukit.errors import StoreError
from gpukit.formats.atomic import sync_folder
from gpukit.formats.positioned import write_all
from gpukit.store.manifest import digest_hex
from gpukit.store.names import ModelName

LOCK = "lock"
JOURNAL = "journal"


class Entry(StrEnum):
    """What a line of a journal says of the digest or name that follows it."""

    OWNS = "owns"  # a blob that this job adds, or whose last manifest it may take away
    USES = "uses"  # a blob that was there before and will be in this job's manifest
    NAME = "name"  # the manifest path that this job is about to write


@dataclass(frozen=True)
class Claims:
    """The lines of one journal."""

    owns: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    @property
    def blobs(self) -> frozenset[str]:
        return self.owns | self.uses


class Job:
    """A living job: a folder for unfinished files and a journal. Made by `Scratch.begin`."""

    def __init__(self, folder: Path, journal: int) -> None:
        self.folder = folder
        self._journal = journal

    def note(self, entry: Entry, what: str) -> None:
        """Add a line; it is on the disk when this returns."""
        write_all(self._journal, memoryview(f"{entry} {what}\n".encode()))
        os.fsync(self._journal)

    def temporary(self) -> Path:
        """The path of a new unfinished file."""
        return self.folder / secrets.token_hex(8)

    def close(self) -> None:
        os.close(self._journal)


class Scratch:
    """The scratch place of one store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's lock; makes the scratch place if there is none."""
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _flock(handle, fcntl.LOCK_EX, self.path)
            yield
        finally:
            os.close(handle)

    def begin(self) -> Job:
        """A new job. The caller holds the lock."""
        folder = self.path / f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o755)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        journal = os.open(folder / JOURNAL, flags, 0o644)
        _flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB, self.path)
        for parent in (folder, self.path):
            sync_folder(parent)
        return Job(folder, journal)

    def folders(self) -> list[Path]:
        """The folders of all jobs, living and dead."""
        try:
            return sorted(path for path in self.path.iterdir() if path.name != LOCK)
        except FileNotFoundError:
            return []

    def dead(self) -> list[Path]:
        """The folders of jobs whose process has gone. The caller holds the lock."""
        return [folder for folder in self.folders() if not alive(folder)]

    def living_claims(self) -> frozenset[str]:
        """Every blob that a living job counts on. The caller holds the lock."""
        living = (claims(folder) for folder in self.folders() if alive(folder))
        return frozenset().union(*(each.blobs for each in living))


def alive(folder: Path) -> bool:
    """Whether a process holds the journal of the job in `folder`, which a link is not."""
    if folder.is_symlink():
        return False
    try:
        handle = os.open(folder / JOURNAL, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True  # another user's: its end is for that user to see
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def claims(folder: Path) -> Claims:
    """What the journal in `folder` says; a last line that was cut off counts for nothing, as the
    thing it announces was not begun."""
    if folder.is_symlink():
        return Claims()
    try:
        text = (folder / JOURNAL).read_text("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return Claims()
    found: dict[str, set[str]] = {entry.value: set() for entry in Entry}
    for line in text.split("\n")[:-1]:
        entry, _, what = line.partition(" ")
        name = entry == Entry.NAME and ModelName.from_path(PurePosixPath(what))
        if name or (entry in found and digest_hex(what)):
            found[entry].add(what)
    return Claims(
        frozenset(found[Entry.OWNS]), frozenset(found[Entry.USES]), frozenset(found[Entry.NAME])
    )


def discard_files(folder: Path) -> None:
    """Remove the unfinished files of a job, keep its journal. A link goes, not where it leads."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for path in folder.iterdir():
        if path.name != JOURNAL:
            _remove(path)


def discard(folder: Path) -> None:
    """Remove a job altogether, its journal last."""
    discard_files(folder)
    if folder.is_dir():
        (folder / JOURNAL).unlink(missing_ok=True)
        folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _flock(handle: int, how: int, where: Path) -> None:
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        raise StoreError(
            f"{where}: this file system has no file locks ({error.strerror}): "
            "set GPUKIT_MODELS to a folder on one that has them"
        ) from None
