"""Programs: recordings (see `recording`) as shared libraries, kept, and run on arrays.

Nothing here needs torch: a process that finds its programs in the cache can do without.
"""

import ctypes
import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy
from numpy.typing import NDArray

from gpukit_kernels.cpu import cache

# Places in an arena begin where a vector register's worth of any kind may.
ALIGNMENT = 64
KINDS = {"float32": 0, "uint16": 1, "float16": 2}  # uint16 holds bfloat16

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_loaded: dict[str, "Library"] = {}


class Library:
    """A library that has been built; every thread has an arena of its own."""

    def __init__(self, path: Path) -> None:
        self._found = ctypes.CDLL(str(path))
        self._size = self._number("arena")
        self._own = threading.local()

    def _number(self, name: str) -> int:
        return ctypes.c_int64.in_dll(self._found, f"gpukit_{name}").value

    def _function(self, name: str, types: str) -> Callable[..., None]:
        """A C function of pointers, p, and whole numbers, n."""
        function = getattr(self._found, name)
        kinds = {"p": ctypes.c_void_p, "n": ctypes.c_int64}
        function.argtypes, function.restype = [kinds[c] for c in types], None
        return cast(Callable[..., None], function)

    def _arena(self) -> int:
        """The address of this thread's."""
        if not hasattr(self._own, "arena"):
            memory = numpy.zeros(self._size + ALIGNMENT, dtype=numpy.uint8)
            self._own.memory = memory
            self._own.arena = int(memory.ctypes.data + -memory.ctypes.data % ALIGNMENT)
        return int(self._own.arena)


class Program(Library):
    """Values to blocks of one type."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lanes = self._number("lanes")
        self._encode = self._function("encode", "ppnpnnpnnnp")

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


class Decoder(Library):
    """Blocks of one type to values, and products with them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Rows of x that lie side by side in a panel, at most.
        self.panel = self._number("panel")
        # Rows of W that are decoded at a time.
        self.lanes = self._number("lanes")
        self._decode = self._function("decode", "ppnp")
        self._multiply = self._function("multiply", "ppnnnppnpn")

    def decode(self, blocks: int, count: int, out: int) -> None:
        """Fill float32 `[count, block]` at address `out` from `count` blocks at address `blocks`."""
        self._decode(self._arena(), blocks, count, out)

    def multiply(
        self, blocks: int, row_bytes: int, rows: int, width: int, end: int, x: int, count: int,
        y: int, stride: int,
    ) -> None:  # fmt: skip
        """Fill float32 `[count, rows]`, rows `stride` floats apart, at address `y`: x W^T.

        W is `rows` rows of `width` values in blocks, `row_bytes` apart, from address `blocks` on;
        nothing is read from `end` on. `x` is the address of float32 x in panels (see `decode.h`).
        """
        self._multiply(
            self._arena(), blocks, row_bytes, rows, width, end, x, count, y, stride
        )


def program_name(kind: str, weighted: bool) -> str:
    """What the program that encodes a type is called."""
    return f"{kind}-importance" if weighted else kind


def decoder_name(kind: str) -> str:
    """What the program that decodes a type, and multiplies with it, is called."""
    return f"{kind}-decode"


def is_kept(name: str) -> bool:
    """Whether there is a program `name`: loaded, or left by an earlier process."""
    return name in _loaded or _sum(cache.place(name)).exists()


def kept(name: str) -> Program | None:
    """The program `name` if an earlier process has left it and it can be loaded.

    Whoever left it has found its bytes to be the reference's on this machine.
    """
    return cast(Program | None, _kept(name, Program))


def kept_decoder(name: str) -> Decoder | None:
    """As `kept`, of decoders."""
    return cast(Decoder | None, _kept(name, Decoder))


def _kept(name: str, kind: type[Library]) -> Library | None:
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
        return _loaded[name]


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
