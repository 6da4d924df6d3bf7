"""What the C library does with memory that is freed."""

import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Let the process keep the scratch memory that it frees, up to 256 MiB, for what comes next.

    glibc else gives tiles of some MiB back and faults them in again, page by page: a fifth of the
    time of types without a search. Other C libraries take no notice.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, 256 << 20)
