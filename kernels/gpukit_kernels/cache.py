"""Where compiled CPU code is kept between processes, and under which names.

Two kinds of files lie in one folder: inductor's own (sources and shared libraries) and ours: a
program's recording and library, and the facts of the types.
"""

import hashlib
import importlib.metadata
import os
import platform
import stat
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

# Inductor reads this variable each time it looks for its folder, and sets it to a temporary folder
# when it is first imported: what the user chose must be read before.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_CHOSEN = os.environ.get(VARIABLE)


def folder() -> Path:
    """$TORCHINDUCTOR_CACHE_DIR, else below $XDG_CACHE_HOME, else below ~/.cache, else, where there
    is no home folder, one of this user's below the temporary folder."""
    if _CHOSEN:
        return Path(_CHOSEN)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "gpukit" / "inductor"
    except RuntimeError:
        return _without_home() / "inductor"


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
    """The file of `name` on this machine; other code has other names."""
    digest = hashlib.sha256(_machine().encode())
    return folder() / f"{name}-{digest.hexdigest()[:16]}.compiled"


@cache
def _machine() -> str:
    """What is kept depends on: our sources, versions, the processor."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    processor = platform.processor()
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    torch = importlib.metadata.version("torch")
    return f"{sources.hexdigest()} {torch} {sys.version} {processor}"


def write(path: Path, data: bytes) -> None:
    """Leave `data` at `path`, whole; where it cannot be kept, the next process compiles again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
