"""Whole reads and writes of file descriptors: what the system does in parts is gone on with."""

import errno
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Linux moves at most 2 GiB less a page in one call; smaller calls also let Ctrl-C through.
CHUNK = 1 << 28


def open_to_read(path: Path) -> int:
    """A descriptor of the regular file `path`; `OSError` for anything else, without waiting for
    the other end of a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "no regular file", str(path))


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of `path`, which may be a pipe; `OSError` (EFBIG) where there are over `most`.

    Asks for what is there: a small file takes little memory, however large it might be.
    """
    data = bytearray()
    with path.open("rb", buffering=0) as file:
        step = max(min(os.fstat(file.fileno()).st_size, most) + 1, 1 << 16)
        while part := file.read(min(step, most + 1 - len(data))):
            data += part
            if len(data) > most:
                raise OSError(errno.EFBIG, f"over {most:,} bytes", str(path))
    return bytes(data)


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on; bytes read, fewer than asked only where the file ends."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done : done + CHUNK]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; `OSError` where the disk refuses."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + CHUNK], offset + done)


def write_all(fd: int, data: memoryview) -> None:
    """Write all of `data` where the descriptor stands; `OSError` where the disk refuses."""
    while data:
        data = data[os.write(fd, data[:CHUNK]) :]


def append_line(fd: int, document: Mapping[str, Any]) -> None:
    """Write `document` as a line of JSON, on the disk when this returns; `OSError` where it
    refuses."""
    text = json.dumps(document, separators=(",", ":")) + "\n"
    write_all(fd, memoryview(text.encode()))
    os.fsync(fd)


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Let the kernel begin to bring these bytes to the disk, so that the sync at the end is short.

    On Linux DONTNEED starts writing dirty pages and keeps them; only clean ones are dropped.
    """
    with suppress(OSError, AttributeError):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
