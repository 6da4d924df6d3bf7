"""Reads importance matrices, as llama-imatrix and gpukit write them: GGUF, or the older .dat.

For each weight they hold the mean of the squares of what came in at each column. Formats:
llama.cpp, tools/imatrix/imatrix.cpp; both are told apart by their first bytes.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpukit.errors import FormatError, one_line
from gpukit.formats.gguf_reader import GGUFFile, is_gguf
from gpukit.formats.positioned import open_to_read

Floats = npt.NDArray[np.float32]
SUMS, COUNTS = ".in_sum2", ".counts"
CHUNKS, CHUNK_SIZE, DATASETS = "imatrix.chunk_count", "imatrix.chunk_size", "imatrix.datasets"
MAX_NAME = 1 << 12


@dataclass(frozen=True)
class Imatrix:
    """Importance by weight name, float32 `[matrices * columns]`, and where it comes from."""

    path: Path
    entries: Mapping[str, Floats]
    dataset: str = ""
    chunks: int = 0


def read_imatrix(path: Path) -> Imatrix:
    """The importance matrix in the file `path`; `FormatError` for one that is malformed.

    What llama-quantize makes of it: sums over counts, 1 for experts that nothing came to.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path}: no such file; an importance matrix is needed")
    found = _read_gguf(path) if is_gguf(path) else _read_dat(path)
    if not found.entries:
        raise FormatError(f"{path}: an importance matrix without entries")
    for name, values in found.entries.items():
        if not np.isfinite(values).all():
            column = int(np.flatnonzero(~np.isfinite(values))[0])
            raise FormatError(
                f"{path}: {one_line(name)}: value {column} of {values.size} is {values[column]}; "
                "make the importance matrix again"
            )
    return found


def _read_gguf(path: Path) -> Imatrix:
    with GGUFFile(path) as file:
        lacking = [key for key in (CHUNKS, CHUNK_SIZE, DATASETS) if key not in file.fields]
        if lacking:
            raise FormatError(f"{path}: no importance matrix: it has no {lacking[0]}")
        datasets, chunks = file.get(DATASETS), file.get(CHUNKS)
        if not isinstance(datasets, list) or not isinstance(chunks, int):
            raise FormatError(f"{path}: {DATASETS} or {CHUNKS} is of another type")
        entries = {
            name.removesuffix(SUMS): _means(file, name)
            for name in file.tensors
            if name.endswith(SUMS)
        }
    return Imatrix(path, entries, str(datasets[0]) if datasets else "", chunks)


def _means(file: GGUFFile, name: str) -> Floats:
    weight = name.removesuffix(SUMS)
    counts = file.tensors.get(weight + COUNTS)
    sums = file.tensors[name]
    if counts is None:
        raise FormatError(f"{file.path}: {one_line(weight)}: {SUMS} without {COUNTS}")
    matrices = counts.n_elements
    if sums.type != "F32" or counts.type != "F32" or not matrices or sums.n_elements % matrices:
        raise FormatError(
            f"{file.path}: {one_line(weight)}: {sums.n_elements} sums ({sums.type}) for "
            f"{matrices} counts ({counts.type}); float32 and a multiple are needed"
        )
    total = file.read(sums).view("<f4").reshape(matrices, -1)
    count = file.read(counts).view("<f4").reshape(matrices, 1)
    with np.errstate(all="ignore"):
        return np.where(count > 0, total / count, np.float32(1)).reshape(-1).astype(np.float32)


def _read_dat(path: Path) -> Imatrix:
    try:
        fd = open_to_read(path)
        try:
            # Mapped: of a file that is something else, however large, little is read.
            data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if os.fstat(fd).st_size else b""
        finally:
            os.close(fd)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    entries: dict[str, Floats] = {}
    reader = _Dat(path, data)
    count = reader.number("the number of entries")
    if count < 1 or count > len(data) // 12:
        raise FormatError(f"{path}: no importance matrix: {count} entries in {len(data)} bytes")
    for index in range(count):
        name = reader.text(f"the name of entry {index}")
        calls = reader.number(f"{name}: calls")
        values = reader.floats(f"{name}: values")
        if name in entries:
            reader.fail(f"{name} stands twice")
        entries[name] = values / np.float32(calls) if calls > 0 else values
    chunks, dataset = 0, ""
    if not reader.at_end():  # files of old versions end here
        chunks = max(reader.number("the number of chunks"), 0)
        dataset = reader.text("the data set") if not reader.at_end() else ""
    return Imatrix(path, entries, dataset, chunks)


class _Dat:
    """The bytes of a .dat file, taken from the front."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def fail(self, what: str) -> None:
        raise FormatError(f"{self._path}: malformed importance matrix: {one_line(what)}")

    def at_end(self) -> bool:
        return self._at == len(self._data)

    def _take(self, size: int, what: str) -> bytes:
        left = len(self._data) - self._at
        if not 0 <= size <= left:
            self.fail(f"{what}: {size} bytes at byte {self._at}, {left} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, what: str) -> int:
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def text(self, what: str) -> str:
        length = self.number(what)
        if length > MAX_NAME:
            self.fail(f"{what} has {length} bytes; {MAX_NAME} are possible")
        return self._take(length, what).decode("utf-8", "surrogateescape")

    def floats(self, what: str) -> Floats:
        count = self.number(what)
        if count < 1:
            self.fail(f"{what}: {count} of them")
        return np.frombuffer(self._take(4 * count, what), "<f4").astype(np.float32)
