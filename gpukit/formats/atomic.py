"""Files that appear whole or not at all: a temporary name in the same folder, fsync, rename.

Temporary names are `.NAME.gpukit-PID-MACHINE-RANDOM.tmp`, of which the last two are one number. A
killed process leaves its own behind; the next write to the same place removes those whose process
is gone. Whether a process of another machine is gone nobody here knows: what such a one has left is
removed when nothing has been written to it for a day.
"""

import errno
import os
import re
import resource
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from gpukit.errors import DiskError
from gpukit.formats.positioned import write_at

# Without a machine: as earlier versions have it.
_TEMPORARY = re.compile(r"^\..+\.gpukit-(\d+)-([0-9a-f]{8})?[0-9a-f]{8}\.tmp$")
# A file of another machine that is still being made has been written to since.
DAY = 86400.0

# File systems take names of 255 bytes; the rest of a temporary one has 43 at most.
MOST_OF_A_NAME = 212

# The temporary files and folders of this process that have neither been put in place nor removed.
_own: set[Path] = set()


def target_of(path: Path) -> Path:
    """The file that `path` means: where a link leads, which need not be there, else `path`."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def temporary_name(path: Path) -> Path:
    """A fresh temporary name beside `path`, until `put_in_place` or `remove` of this process."""
    random = f"{_machine()}{secrets.token_hex(4)}"
    name = path.with_name(f"{_beginning(path)}{os.getpid()}-{random}.tmp")
    _own.add(name)
    return name


def _beginning(path: Path) -> str:
    """What all temporary names of `path` begin with."""
    return f".{os.fsdecode(os.fsencode(path.name)[:MOST_OF_A_NAME])}.gpukit-"


@cache
def _machine() -> str:
    """8 hex digits for the processes that this one can see: the machine's, or the container's."""
    processes = ""
    with suppress(OSError):
        processes = os.readlink("/proc/self/ns/pid")
    return sha256(f"{os.uname().nodename} {processes}".encode()).hexdigest()[:8]


def put_in_place(temporary: Path, path: Path) -> None:
    """Give the synced file or folder `temporary` its name, to last through a power cut. A folder
    takes the place of an empty one at most."""
    temporary.replace(path)
    _own.discard(temporary)
    sync_folder(path.parent)


def remove(temporary: Path) -> None:
    """Remove a temporary file or folder, if it is there."""
    _removed(temporary)
    _own.discard(temporary)


def _removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_own() -> None:
    """Remove all that is temporary of this process, whoever was to do it: it ends now."""
    for path in list(_own):
        with suppress(OSError):
            remove(path)


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove temporary files and folders in `folder` whose process is gone; what was removed."""
    removed = []
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        with suppress(OSError):
            if match and not _in_use(path, int(match[1]), match[2]):
                _removed(path)
                removed.append(path)
    return removed


def remove_temporaries(path: Path) -> None:
    """Remove whatever is temporary of `path`; for those who know that nobody is making it."""
    beginning = _beginning(path)
    if len(os.fsencode(path.name)) > MOST_OF_A_NAME:
        return  # others may begin so, too
    with suppress(OSError):
        for found in path.parent.iterdir():
            if found.name.startswith(beginning) and _TEMPORARY.match(found.name):
                with suppress(OSError):
                    _removed(found)


def _in_use(path: Path, pid: int, machine: str | None) -> bool:
    if machine in (None, _machine()):
        if machine and pid == os.getpid():
            return any(own.name == path.name for own in list(_own))
        return _alive(pid)
    return time.time() - path.stat().st_mtime < DAY


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only its parent has not asked how, as in containers whose
    first process never does. Other systems than Linux do not tell."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The state stands behind the name, which may hold brackets itself.
    return facts.rpartition(b") ")[2][:1] in (b"Z", b"X")


@contextmanager
def disk_errors(path: Path, elsewhere: str | None = None) -> Iterator[None]:
    """Turn what the disk says about `path` into one `DiskError` line with a remedy.

    With `elsewhere`, the way to another place, `path` is a folder, and the line names the file in
    it that is refused.
    """
    try:
        yield
    except OSError as error:
        where = path if elsewhere is None else error.filename or path
        remedy = _remedy(error, path, elsewhere)
        raise DiskError(f"{where}: {error.strerror or error}{remedy}") from None


def _remedy(error: OSError, path: Path, elsewhere: str | None) -> str:
    if error.errno == errno.EFBIG and error.strerror == os.strerror(errno.EFBIG):
        return _too_large(elsewhere)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            place = path if elsewhere else next(each for each in path.parents if each.exists())
            free = shutil.disk_usage(place).free
            other = elsewhere or "write to another disk"
            return f" ({free} bytes are free); make room or {other}"
    if elsewhere and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"; {elsewhere}"
    return ""


def _too_large(elsewhere: str | None) -> str:
    """Why a file may not grow further: the limit of this process, or that of its file system."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY:
        return f" (this process may write files of {limit} bytes); raise that limit, ulimit -f"
    other = elsewhere or "write to another disk"
    return f" (its file system has no files so large); {other}"


def need_room(path: Path, size: int, place: Path | None = None) -> None:
    """`DiskError` where the disk of `path` has less than `size` bytes free; `place` is where the
    file lies until it has that name, if not beside it."""
    with disk_errors(path):
        free = shutil.disk_usage((place or path).parent).free
    if free < size:
        raise DiskError(
            f"{path}: {size} bytes are needed, {free} are free; make room or write to another disk"
        )


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def appearing(path: Path, mode: int = 0o644) -> Iterator[int]:
    """The descriptor of a new file, which is at `path` at the end of the block, whole, or not at
    all. Where `path` is a link, this is true of the file that it leads to."""
    path = target_of(path)
    temporary = temporary_name(path)
    with disk_errors(path):
        remove_abandoned(path.parent)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                yield fd
                os.fsync(fd)
            finally:
                os.close(fd)
            put_in_place(temporary, path)
        except BaseException:
            remove(temporary)
            raise


def atomic_write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file whole: `path` holds the old content or `data`, never less."""
    with appearing(path, mode) as fd:
        write_at(fd, memoryview(data), 0)
