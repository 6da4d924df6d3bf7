"""Pointers of Git LFS: a few lines of text in the place of a large file that was not fetched.

Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

import os
from pathlib import Path

from gpukit.formats.positioned import open_to_read

START = b"version https://git-lfs.github.com/spec/"
LARGEST = 1024  # bytes, by the specification
POINTER = (
    "a pointer of Git LFS in the place of the file: run `git lfs pull` in the folder, or fetch the "
    "file itself"
)


def is_pointer(path: Path) -> bool:
    """Whether the file at `path` is a pointer; files that cannot be read are none."""
    try:
        with os.fdopen(open_to_read(path), "rb") as file:
            return file.read(len(START)) == START and path.stat().st_size <= LARGEST
    except OSError:
        return False
