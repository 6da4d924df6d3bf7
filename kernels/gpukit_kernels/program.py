"""Programs: recordings (see `recording`) compiled to one C function, kept, and run on arrays.

Nothing here needs torch: a process that finds its programs in the cache can do without.
"""

import ctypes
import json
import logging
import os
import subprocess
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from gpukit_kernels import cache

# Places in an arena begin where a vector register's worth of any kind may.
ALIGNMENT = 64
# The suffix of a program's own C function, beside the file that says what it calls.
LIBRARY = ".so"

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_programs: dict[str, "Program"] = {}


@dataclass(frozen=True)
class Recording:
    """A program for files: the C source, the libraries whose functions it calls, blocks in a tile,
    the arena's size, and the constants, float32 and others, in hexadecimal digits."""

    source: str
    libraries: list[str]
    lanes: int
    size: int
    constants: str

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def build(recording: Recording, compiler: str, library: Path) -> None:
    """Compile the C of `recording` to `library`."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        code, made = Path(folder) / "program.c", Path(folder) / "program.so"
        code.write_text(recording.source)
        command = [compiler, "-x", "c", "-O2", "-shared", "-fPIC", "-o", str(made), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr.strip() or done.returncode}")
        os.replace(made, library)


class Program:
    """A recording that can run; every thread has an arena of its own."""

    def __init__(self, recording: Recording, library: Path) -> None:
        functions = [ctypes.CDLL(path).kernel for path in recording.libraries]
        addresses = [ctypes.cast(function, ctypes.c_void_p) for function in functions]
        self._functions = (ctypes.c_void_p * max(len(addresses), 1))(
            *[address.value for address in addresses]
        )
        self._recording = recording
        self.lanes = recording.lanes
        self._encode = ctypes.CDLL(str(library)).encode
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._encode.argtypes = [
            *[pointer] * 5, number, number, pointer, number, number, number, pointer
        ]  # fmt: skip
        self._encode.restype = None
        self._constants = bytes.fromhex(recording.constants)
        self._own = threading.local()

    def _arena(self) -> int:
        """The address of this thread's."""
        if not hasattr(self._own, "arena"):
            memory = numpy.zeros(self._recording.size + ALIGNMENT, dtype=numpy.uint8)
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
        """Fill uint8 `out [blocks, nbytes]` from `values [blocks, block]`: what the program was
        made for, float32, or bfloat16 as uint16.

        With importance `columns`, float32 `[experts, blocks of a row, block]`, block 0 of `values`
        is block `first` of experts of `rows` rows each; `means` float32 `[blocks]`. All arrays are
        contiguous.
        """
        experts, of_row = columns.shape[:2] if columns is not None else (1, 1)
        self._encode(
            self._functions, self._arena(), self._constants, values.ctypes.data, out.ctypes.data,
            len(values), first,
            columns.ctypes.data if columns is not None else None, experts, of_row, max(rows, 1),
            means.ctypes.data if means is not None else None,
        )  # fmt: skip


def program_name(kind: str, dtype: str, weighted: bool) -> str:
    """What the program of a type for values of `dtype`, "float32" or "bfloat16", is called."""
    return f"{kind}-importance-{dtype}" if weighted else f"{kind}-{dtype}"


def is_kept(name: str) -> bool:
    """Whether there is a program `name`: loaded, or left by an earlier process."""
    return name in _programs or cache.place(name).exists()


def kept(name: str) -> Program | None:
    """The program `name` if an earlier process has left it and it can be loaded.

    Whoever left it has found its bytes to be the reference's on this machine.
    """
    with _lock:
        if name not in _programs:
            path = cache.place(name)
            try:
                recording = Recording(**json.loads(path.read_bytes()))
                _programs[name] = Program(recording, path.with_suffix(LIBRARY))
            except FileNotFoundError:
                return None
            except Exception as error:  # damaged, or its libraries are gone
                _log.info("%s: %s", path, error)
                return None
        return _programs[name]


def keep(name: str, recording: Recording, program: Program) -> None:
    """Leave `program`, whose bytes have been checked, for this process and others."""
    with _lock:
        _programs[name] = program
    cache.write(cache.place(name), recording.as_json())
