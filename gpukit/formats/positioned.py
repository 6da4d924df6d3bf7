"""Whole reads and writes of file descriptors: what the system does in parts is gone on with."""

import os
from contextlib import suppress

# Linux moves at most 2 GiB less a page in one call; smaller calls also let Ctrl-C through.
CHUNK = 1 << 28


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


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Let the kernel begin to bring these bytes to the disk, so that the sync at the end is short.

    On Linux DONTNEED starts writing dirty pages and keeps them; only clean ones are dropped.
    """
    with suppress(OSError, AttributeError):
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
