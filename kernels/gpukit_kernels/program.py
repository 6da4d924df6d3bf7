"""Programs: recordings (see `recording`) compiled to one C function, and run."""

import ctypes
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy
from torch import Tensor

from gpukit_kernels.arena import ALIGNMENT
from gpukit_kernels.recording import Recording


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
        values: Tensor,
        out: Tensor,
        first: int = 0,
        columns: Tensor | None = None,
        rows: int = 1,
        means: Tensor | None = None,
    ) -> None:
        """Fill uint8 `out [blocks, nbytes]` from contiguous `values [blocks, block]`.

        With importance `columns`, float32 `[experts, blocks of a row, block]`, block 0 of `values`
        is block `first` of experts of `rows` rows each; `means` float32 `[blocks]`.
        """
        experts, of_row = columns.shape[:2] if columns is not None else (1, 1)
        self._encode(
            self._functions, self._arena(), self._constants, values.data_ptr(), out.data_ptr(),
            len(values), first,
            columns.data_ptr() if columns is not None else None, experts, of_row, max(rows, 1),
            means.data_ptr() if means is not None else None,
        )  # fmt: skip
