"""Reads and writes at a position of a file descriptor."""

import os

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
