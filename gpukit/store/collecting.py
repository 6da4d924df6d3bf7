"""Garbage: files below `blobs/` that belong to no model and that nobody is working on."""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.errors import StoreError
from gpukit.events import Report, Warned, ignore
from gpukit.store import blobs
from gpukit.store.changes import settle_dead
from gpukit.store.journal import LOCK, Scratch
from gpukit.store.manifest import digest_hex
from gpukit.store.store import Store

# What is younger may be of a program that has not written its manifest yet, as Ollama's grace.
GRACE = 3600.0

# A pull's file and what tells of its parts; they stay or go together.
_UNFINISHED = re.compile(r"(sha256-[0-9a-fA-F]{64}-partial)(?:-\d{1,6})?")


@dataclass(frozen=True)
class Collected:
    """What `collect` removed, or would: names below `blobs/` and their bytes; how many others are
    `young`, and how many are dated in the future."""

    removed: tuple[str, ...] = ()
    nbytes: int = 0
    young: int = 0
    ahead: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fields; the size in bytes."""
        return {
            "removed": list(self.removed),
            "size": self.nbytes,
            "young": self.young,
            "ahead": self.ahead,
        }


@dataclass(frozen=True)
class _Garbage:
    """Files that go together: the newest change of one of them, and their bytes on the disk."""

    paths: tuple[Path, ...]
    modified: float
    nbytes: int


def collect(
    store: Store, *, grace: float = GRACE, dry: bool = False, report: Report = ignore
) -> Collected:
    """Remove what no manifest mentions, no living command counts on, and nobody has touched for
    `grace` seconds: blobs, unfinished pulls, temporary files of Ollama's. What killed commands left
    goes whatever its age. With `dry` nothing is removed.

    `StoreError` where a manifest is corrupt, since nobody knows what it mentions; then nothing
    goes. DiskError for a store that may not be changed.
    """
    if not store.blobs.is_dir():
        return Collected()
    scratch = Scratch(store.scratch)
    with blobs.disk_errors(store.root), scratch.lock():
        _check_manifests(store)
        if not dry:
            settle_dead(store, scratch)
        found = _garbage(store.blobs, store.mentioned() | scratch.living_claims())
        return _remove(found, _now(scratch), grace, dry, report)


def _check_manifests(store: Store) -> None:
    for name in store.names():
        try:
            store.manifest(name)
        except StoreError as error:
            raise StoreError(f"{error}; until then nothing is collected") from None


def _now(scratch: Scratch) -> float:
    """The time by the clock that files are dated with, which on a network is a server's."""
    path = scratch.path / LOCK
    os.utime(path)
    return path.stat().st_mtime


def _garbage(folder: Path, used: Iterable[str]) -> list[_Garbage]:
    """Files that are not `used`, as far as their names say that they are of a store."""
    kept = {digest_hex(digest) for digest in used}
    groups: dict[str, list[os.DirEntry[str]]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            ours = entry.name.startswith("sha256-") and not entry.is_dir(follow_symlinks=False)
            if ours and digest_hex(entry.name) not in (kept - {None}):
                match = _UNFINISHED.fullmatch(entry.name)
                groups.setdefault(match[1] if match else entry.name, []).append(entry)
    return [garbage for _, group in sorted(groups.items()) if (garbage := _together(group))]


def _together(entries: list[os.DirEntry[str]]) -> _Garbage | None:
    """One piece of garbage; None where it has gone meanwhile."""
    with suppress(FileNotFoundError):
        facts = [entry.stat(follow_symlinks=False) for entry in entries]
        return _Garbage(
            tuple(Path(entry.path) for entry in entries),
            max(each.st_mtime for each in facts),
            sum(each.st_blocks * 512 for each in facts),
        )
    return None


def _remove(
    found: list[_Garbage], now: float, grace: float, dry: bool, report: Report
) -> Collected:
    old = [each for each in found if abs(now - each.modified) >= grace or not grace]
    ahead = [each for each in old if each.modified > now + grace]
    if ahead:
        others, these = len(ahead) - 1, "them" if len(ahead) > 1 else "it"
        report(Warned(
            f"{ahead[0].paths[0]} is dated {ahead[0].modified - now:.0f} s in the future: it "
            f"{f'and {others} more stay' if others else 'stays'}; the clock is off, or was: touch "
            f"{these} where it was"
        ))  # fmt: skip
    gone = [each for each in old if each not in ahead and (dry or _removed(each))]
    return Collected(
        removed=tuple(sorted(path.name for each in gone for path in each.paths)),
        nbytes=sum(each.nbytes for each in gone),
        young=len(found) - len(old),
        ahead=len(ahead),
    )


def _removed(garbage: _Garbage) -> bool:
    """Whether it was removed: an unfinished pull that goes on is left alone."""
    with _held(garbage.paths) as free:
        if free:
            for path in garbage.paths:
                path.unlink(missing_ok=True)
    return free


@contextmanager
def _held(paths: tuple[Path, ...]) -> Iterator[bool]:
    """Hold an unfinished pull as one that goes on would; False where one does."""
    path = next((path for path in paths if path.name.endswith("-partial")), None)
    if path is None or path.is_symlink() or not path.is_file():
        yield True
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)
