"""What may be written to: files that are there or can be made, never devices, pipes or inputs.

A file is written under a temporary name and renamed, so whatever has its name is replaced: a
device or a pipe would be destroyed. A link is followed to what it means, as llama.cpp's tools do.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from gpukit.errors import ArgumentError, DiskError
from gpukit.formats.atomic import disk_errors, target_of

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """`ArgumentError` where `path` is no place for a new file or one of `inputs`, `DiskError` where
    this user cannot write it. To be called before anything is read."""
    check_name(path)
    target = target_of(path)
    with disk_errors(path):
        there = _status(path)
        beside = _status(target.parent)
    for holds, kind in _KINDS:
        if there is not None and holds(there.st_mode):
            raise ArgumentError(f"{path}: {kind}; name the file to write")
    if beside is None:
        raise ArgumentError(f"{path}: there is no folder {target.parent}; make it first")
    if not stat.S_ISDIR(beside.st_mode):
        raise ArgumentError(f"{path}: {target.parent} is no folder")
    if there is not None and _status(target) is None:
        raise ArgumentError(f"{path}: leads to no name; name the file to write")
    for other in inputs:
        found = _status(other)
        if there is not None and found is not None and os.path.samestat(there, found):
            raise ArgumentError(
                f"{path}: input and output are the same file; write to another name"
            )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DiskError(f"{path}: you may not write to the folder {target.parent}")
    if there is not None and not os.access(target, os.W_OK):
        raise DiskError(f"{path}: write-protected; remove it first or write to another name")


def check_name(path: Path) -> None:
    """`ArgumentError` for `-`, which means standard output elsewhere: what appears whole or not at
    all cannot go there, and a file of that name is what nobody wants."""
    if str(path) == "-":
        raise ArgumentError("-: nothing is written to standard output; give the output a name")


def _status(path: Path) -> os.stat_result | None:
    """What `path` is, links followed; None where nothing is there."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
