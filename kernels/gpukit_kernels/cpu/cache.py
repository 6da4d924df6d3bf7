"""Where compiled CPU code is kept between processes, and under which names.

A program is a shared library and a file that has its checksum.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from gpukit_kernels.cpu.build import compiler, flags

VARIABLE = "GPUKIT_CACHE"
# What nobody has used for so long is taken away when something new is left.
KEPT_SECONDS = 30 * 24 * 3600
SUFFIX = ".so"


def folder() -> Path:
    """$GPUKIT_CACHE, else below $XDG_CACHE_HOME, else below ~/.cache, else, where there is no home
    folder, one of this user's below the temporary folder."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "gpukit" / "programs"
    except RuntimeError:
        return _without_home() / "programs"


@cache
def _without_home() -> Path:
    # What lies here is loaded and run: nobody else may have put it there.
    path = Path(tempfile.gettempdir()) / f"gpukit-{os.getuid()}"
    with suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and not found.st_mode & 0o022
        ):
            return path
    return Path(tempfile.mkdtemp(prefix="gpukit-"))


def place(name: str) -> Path:
    """The library of `name` on this machine; other code has other names."""
    digest = hashlib.sha256(f"{_machine()} {compiler()} {flags()}".encode())
    return folder() / f"{name}-{digest.hexdigest()[:16]}{SUFFIX}"


@cache
def _machine() -> str:
    """What is kept depends on: our sources, versions, the processor."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*")):
        if path.suffix in (".c", ".h", ".py"):
            sources.update(path.read_bytes())
    processor = platform.processor()
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    torch = importlib.metadata.version("torch")
    return f"{sources.hexdigest()} {torch} {sys.version} {processor}"


def write(path: Path, data: bytes) -> None:
    """Leave `data` at `path`, whole, if it can be."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)


def used(path: Path) -> None:
    """Note that `path` has been of use today."""
    with suppress(OSError):
        os.utime(path)
        os.utime(path.with_suffix(".sha256"))


def evict() -> None:
    """Take away what has not been used for long: code of other versions, for the most part."""
    oldest = time.time() - KEPT_SECONDS
    with suppress(OSError):
        for path in folder().iterdir():
            with suppress(OSError):
                if path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():  # of a compiler that was killed
                    shutil.rmtree(path)
                else:
                    path.unlink()
