"""Reads GGUF files, versions 2 and 3; `gguf_header.py` refuses malformed ones."""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpukit.errors import GGUFError
from gpukit.formats.closing import Closing
from gpukit.formats.gguf_fields import Field, TensorInfo
from gpukit.formats.gguf_header import MAGIC, Header
from gpukit.formats.positioned import open_to_read, read_at


class GGUFFile(Closing):
    """An open GGUF file: `fields` and `tensors` by name in file order; data is read on demand.

    Raises `GGUFError` (one line, with the file's name) for anything malformed or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._fd = open_to_read(self.path)
        except FileNotFoundError:
            raise GGUFError(f"{self.path}: no such file") from None
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self._open()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> None:
        try:
            self.size = os.fstat(self._fd).st_size
            with _mapped(self._fd, self.size, self.path) as view:
                header = Header(view, self.path)
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be read: {error.strerror}") from None
        self.version: int = header.version
        self.alignment: int = header.alignment
        self.data_start: int = header.data_start
        self.fields: Mapping[str, Field] = header.fields
        self.tensors: Mapping[str, TensorInfo] = header.tensors

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a field, `default` where the file has none."""
        field = self.fields.get(key)
        return default if field is None else field.value

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; safe from several threads."""
        if start < 0 or start + len(buffer) > info.nbytes:
            raise ValueError(f"{info.name}: {start} + {len(buffer)} bytes of {info.nbytes}")
        try:
            got = read_at(self._fd, buffer, info.offset + start)
        except OSError as error:
            raise GGUFError(f"{self.path}: {info.name}: {error.strerror}") from None
        if got != len(buffer):
            raise GGUFError(
                f"{self.path}: {info.name}: the file ends at byte {info.offset + start + got}, "
                f"{len(buffer) - got} bytes short; it has changed since it was opened"
            )

    def read(self, info: TensorInfo) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The tensor's bytes, uint8 `[nbytes]`."""
        out = np.empty(info.nbytes, dtype=np.uint8)
        self.read_into(info, out.data)
        return out

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_gguf(path: Path) -> bool:
    """Whether the file begins with GGUF's magic."""
    try:
        with os.fdopen(open_to_read(path), "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def _mapped(fd: int, size: int, path: Path) -> mmap.mmap:
    if size < 24:
        start = os.pread(fd, len(MAGIC), 0)
        if start and not MAGIC.startswith(start):
            raise GGUFError(f"{path}: no GGUF file: it begins with {start!r}, not {MAGIC!r}")
        raise GGUFError(f"{path}: {size} bytes are too few for a GGUF header of 24")
    return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
