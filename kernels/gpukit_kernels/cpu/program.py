"""Programs: recordings (see `recording`) as shared libraries, kept, and run on arrays.

Nothing here needs torch: a process that finds its programs in the cache can do without.
"""

import ctypes
import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from gpukit_kernels.cpu import cache

# Places in an arena begin where a vector register's worth of any kind may.
ALIGNMENT = 64
KINDS = {"float32": 0, "uint16": 1, "float16": 2}  # uint16 holds bfloat16

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_programs: dict[str, "Program"] = {}


class Program:
    """A library that has been built; every thread has an arena of its own."""

    def __init__(self, library: Path) -> None:
        found = ctypes.CDLL(str(library))
        self._size = ctypes.c_int64.in_dll(found, "gpukit_arena").value
        self.lanes = ctypes.c_int64.in_dll(found, "gpukit_lanes").value
        self._encode = found.encode
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._encode.argtypes = [
            pointer, pointer, number, pointer, number, number, pointer, number, number, number,
            pointer,
        ]  # fmt: skip
        self._encode.restype = None
        self._own = threading.local()

    def _arena(self) -> int:
        """The address of this thread's."""
        if not hasattr(self._own, "arena"):
            memory = numpy.zeros(self._size + ALIGNMENT, dtype=numpy.uint8)
            begin = -memory.ctypes.data % ALIGNMENT
            self._own.arena = memory[begin:]
        return int(self._own.arena.ctypes.data)

    def run(
        self,
        values: NDArray[Any],
        out: NDArray[numpy.uint8],
        first: int = 0,
        columns: NDArray[numpy.float32] | None = None,
        rows: int = 1,
        means: NDArray[numpy.float32] | None = None,
    ) -> None:
        """Fill uint8 `out [blocks, nbytes]` from `values [blocks, block]`: float32, float16, or
        bfloat16 as uint16.

        With importance `columns`, float32 `[experts, blocks of a row, block]`, block 0 of `values`
        is block `first` of experts of `rows` rows each; `means` float32 `[blocks]`. All arrays are
        contiguous.
        """
        experts, of_row = columns.shape[:2] if columns is not None else (1, 1)
        self._encode(
            self._arena(), values.ctypes.data, KINDS[values.dtype.name], out.ctypes.data,
            len(values), first,
            columns.ctypes.data if columns is not None else None, experts, of_row, max(rows, 1),
            means.ctypes.data if means is not None else None,
        )  # fmt: skip


def program_name(kind: str, weighted: bool) -> str:
    """What the program that encodes a type is called."""
    return f"{kind}-importance" if weighted else kind


def is_kept(name: str) -> bool:
    """Whether there is a program `name`: loaded, or left by an earlier process."""
    return name in _programs or _sum(cache.place(name)).exists()


def kept(name: str) -> Program | None:
    """The program `name` if an earlier process has left it and it can be loaded.

    Whoever left it has found its bytes to be the reference's on this machine.
    """
    with _lock:
        if name not in _programs:
            path = cache.place(name)
            try:
                wanted = _sum(path).read_text()
                if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
                    raise OSError("it is damaged")
                _programs[name] = Program(path)
            except FileNotFoundError:
                return None
            except Exception as error:
                _log.info("%s: %s", path, error)
                return None
            cache.used(path)
        return _programs[name]


def keep(name: str, program: Program) -> None:
    """Leave `program`, whose bytes have been checked, for this process and others; where it cannot
    be kept, the next process builds it again."""
    with _lock:
        _programs[name] = program
    path = cache.place(name)
    cache.write(_sum(path), hashlib.sha256(path.read_bytes()).hexdigest().encode())
    cache.evict()


def _sum(library: Path) -> Path:
    """The file that says that a library is whole and has been checked."""
    return library.with_suffix(".sha256")
