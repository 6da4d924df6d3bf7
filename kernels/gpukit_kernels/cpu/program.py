"""Programs: recordings (see `recording`) as shared libraries, kept, and run on arrays.

Nothing here needs torch: a process that finds its programs in the cache can do without.
"""

import ctypes
import hashlib
import logging
import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy
from numpy.typing import NDArray

from gpukit_kernels.cpu import cache

# Places in an arena begin where a vector register's worth of any kind may.
ALIGNMENT = 64
KINDS = {"float32": 0, "uint16": 1, "float16": 2}  # uint16 holds bfloat16

POOL = "pool"
MERGE = "merge"

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_loaded: dict[str, "Library"] = {}


class Library:
    """A library that has been built; every thread has an arena of its own."""

    def __init__(self, path: Path) -> None:
        self._found = ctypes.CDLL(str(path))
        self._own = threading.local()

    @cached_property
    def _size(self) -> int:
        """Bytes of an arena."""
        return self._number("arena")

    def _number(self, name: str) -> int:
        return ctypes.c_int64.in_dll(self._found, f"gpukit_{name}").value

    def _function(self, name: str, types: str, result: type | None = None) -> Callable[..., Any]:
        """A C function of pointers, p, and whole numbers, n."""
        function = getattr(self._found, name)
        kinds = {"p": ctypes.c_void_p, "n": ctypes.c_int64}
        function.argtypes, function.restype = [kinds[c] for c in types], result
        return cast(Callable[..., Any], function)

    def _arena(self) -> int:
        """The address of this thread's."""
        if not hasattr(self._own, "arena"):
            memory = numpy.zeros(self._size + ALIGNMENT, dtype=numpy.uint8)
            self._own.memory = memory
            self._own.arena = int(memory.ctypes.data + -memory.ctypes.data % ALIGNMENT)
        return int(self._own.arena)


class _Encoding(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p), ("kind", ctypes.c_int64), ("out", ctypes.c_void_p),
        ("columns", ctypes.c_void_p), ("experts", ctypes.c_int64), ("of_row", ctypes.c_int64),
        ("rows", ctypes.c_int64), ("means", ctypes.c_void_p),
    )  # fmt: skip


class Program(Library):
    """Values to blocks of one type."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lanes = self._number("lanes")
        self._encode = self._function("encode", "ppnn")

    def encoder(
        self,
        values: NDArray[Any],
        out: NDArray[numpy.uint8],
        columns: NDArray[numpy.float32] | None = None,
        rows: int = 1,
        means: NDArray[numpy.float32] | None = None,
    ) -> Callable[[int, int], None]:
        """A function that fills blocks `start` to `stop` of uint8 `out [blocks, nbytes]` from those
        of `values [blocks, block]`: float32, float16, or bfloat16 as uint16. Threads may call it at
        the same time.

        With importance `columns` is float32 `[experts, blocks of a row, block]`, `values` are
        experts of `rows` rows each, and `means` is float32 `[blocks]`. All arrays are contiguous.
        """
        experts, of_row = columns.shape[:2] if columns is not None else (1, 1)
        job = _Encoding(
            values.ctypes.data, KINDS[values.dtype.name], out.ctypes.data,
            columns.ctypes.data if columns is not None else None, experts, of_row, max(rows, 1),
            means.ctypes.data if means is not None else None,
        )  # fmt: skip
        return partial(self._run, job, (values, out, columns, means))

    def _run(self, job: _Encoding, _kept: object, start: int, stop: int) -> None:
        self._encode(ctypes.byref(job), self._arena(), start, stop)


class _Decoding(ctypes.Structure):
    _fields_ = (
        ("arenas", ctypes.c_void_p), ("blocks", ctypes.c_void_p), ("count", ctypes.c_int64),
        ("out", ctypes.c_void_p),
    )  # fmt: skip


class _Tiling(ctypes.Structure):
    _fields_ = (
        ("arenas", ctypes.c_void_p), ("x", ctypes.c_void_p), ("count", ctypes.c_int64),
        ("width", ctypes.c_int64), ("out", ctypes.c_void_p),
    )  # fmt: skip


class _Product(ctypes.Structure):
    _fields_ = (
        ("arenas", ctypes.c_void_p), ("blocks", ctypes.c_void_p), ("row_bytes", ctypes.c_int64),
        ("width", ctypes.c_int64), ("end", ctypes.c_void_p), ("x", ctypes.c_void_p),
        ("count", ctypes.c_int64), ("y", ctypes.c_void_p), ("stride", ctypes.c_int64),
    )  # fmt: skip


class Pool(Library):
    """Threads for the parts of a job; see `pool.c`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._share = self._function("share", "ppnnn", ctypes.c_int64)

    def share(
        self, part: ctypes.c_void_p, job: ctypes.Structure, count: int, step: int, threads: int
    ) -> bool:
        """Whether the C function `part` has been called for all of `job`, for each `step` of
        `count`; not where another job is under way."""
        return bool(self._share(part, ctypes.byref(job), count, step, threads))


class Decoder(Library):
    """Blocks of one type to values, and products with them. Places are addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Rows of x that lie side by side in a panel, at most.
        self.panel = self._number("panel")
        # Rows of W that are decoded at a time.
        self.lanes = self._number("lanes")
        # Elements of a float type in a word; 0 of other types.
        self.line = self._number("line")
        # Each job's function, and its address: a product calls it hundreds of times a token.
        self._parts: dict[str, tuple[Callable[..., Any], ctypes.c_void_p]] = {}
        # Whether products of many rows can go through the processor's tiles.
        self.tiled = bool(self._number("tiled")) and bool(
            self._function("may_tile", "", ctypes.c_int64)()
        )
        names = ["decode", "multiply", *["tile", "multiply_tiled"] * self.tiled]
        names += ["multiply_line"] * (self.line > 0)
        for name in names:
            address = ctypes.cast(getattr(self._found, name), ctypes.c_void_p)
            self._parts[name] = (self._function(name, "pnnn"), address)
        self._lock = threading.Lock()
        self._arenas: NDArray[numpy.uint8] = numpy.empty(0, dtype=numpy.uint8)

    def decode(
        self, blocks: int, count: int, out: int, pool: Pool | None, step: int, threads: int
    ) -> None:
        """Fill float32 `[count, block]` at `out` from `count` blocks at `blocks`."""
        self._run("decode", _Decoding(None, blocks, count, out), count, pool, step, threads)

    def multiply(
        self, blocks: int, row_bytes: int, rows: int, width: int, end: int, x: int, count: int,
        y: int, pool: Pool | None, step: int, threads: int, way: str = "multiply",
    ) -> None:  # fmt: skip
        """Fill float32 `[count, rows]` at `y`: x W^T.

        W is `rows` rows of `width` values in blocks, `row_bytes` apart, from `blocks` on; nothing
        is read from `end` on. `x` is float32 x as the `way` wants it: in panels, for
        "multiply_line" one row by lanes (see `decode.h`), for "multiply_tiled" what `tile` makes.
        """
        job = _Product(None, blocks, row_bytes, width, end, x, count, y, rows)
        self._run(way, job, rows, pool, step, threads)

    def tile(
        self, x: int, count: int, width: int, out: int, pool: Pool | None, threads: int
    ) -> None:
        """Fill bfloat16 tiles `[blocks of 16 rows, steps of 32 elements, 2, 16, 32]` at `out`, an
        even number of blocks, from float32 `[count, width]` at `x`."""
        blocks = (count + 31) // 32 * 2
        self._run("tile", _Tiling(None, x, count, width, out), blocks, pool, 1, threads)

    def _run(
        self, name: str, job: ctypes.Structure, count: int, pool: Pool | None, step: int,
        threads: int,
    ) -> None:  # fmt: skip
        """The parts of `job` by `pool`, or by this thread where it has none or is busy."""
        part, address = self._parts[name]
        if pool is not None and self._lock.acquire(blocking=False):
            try:
                job.arenas = self._shared(threads)
                if pool.share(address, job, count, step, threads):
                    return
            finally:
                self._lock.release()
        job.arenas = self._arena()
        part(ctypes.byref(job), 0, count, 0)

    def _shared(self, threads: int) -> int:
        """The arenas of so many threads."""
        if len(self._arenas) < self._size * threads + ALIGNMENT:
            self._arenas = numpy.zeros(self._size * threads + ALIGNMENT, dtype=numpy.uint8)
        begin = int(self._arenas.ctypes.data)
        return begin + -begin % ALIGNMENT


def program_name(kind: str, weighted: bool) -> str:
    """What the program that encodes a type is called."""
    return f"{kind}-importance" if weighted else kind


def decoder_name(kind: str) -> str:
    """What the program that decodes a type, and multiplies with it, is called."""
    return f"{kind}-decode"


def is_loaded(name: str) -> bool:
    """Whether this process has the program `name`."""
    return name in _loaded


def is_kept(name: str) -> bool:
    """Whether an earlier process has left a program `name`."""
    return _sum(cache.place(name)).exists()


def kept(name: str) -> Program | None:
    """The program `name` if an earlier process has left it and it can be loaded.

    Whoever left it has found its bytes to be the reference's on this machine.
    """
    return kept_library(name, Program)


L = TypeVar("L", bound=Library)


def kept_library(name: str, kind: type[L]) -> L | None:
    """As `kept`, of any kind."""
    with _lock:
        if name not in _loaded:
            path = cache.place(name)
            try:
                wanted = _sum(path).read_text()
                if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
                    raise OSError("it is damaged")
                _loaded[name] = kind(path)
            except FileNotFoundError:
                return None
            except Exception as error:
                _log.info("%s: %s", path, error)
                return None
            cache.used(path)
        return cast(L, _loaded[name])


def keep(name: str, program: Library) -> None:
    """Leave `program`, whose bytes have been checked, for this process and others; where it cannot
    be kept, the next process builds it again."""
    with _lock:
        _loaded[name] = program
    path = cache.place(name)
    cache.write(_sum(path), hashlib.sha256(path.read_bytes()).hexdigest().encode())
    cache.evict()


def _sum(library: Path) -> Path:
    """The file that says that a library is whole and has been checked."""
    return library.with_suffix(".sha256")
