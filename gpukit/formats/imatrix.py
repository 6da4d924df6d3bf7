"""Reads importance matrices, as llama-imatrix and gpukit write them: GGUF, or the older .dat.

For each weight they hold sums over what came in at each column, of squares and in newer files of
the values, and how much came. Formats: llama.cpp, tools/imatrix/imatrix.cpp; both are told apart by
their first bytes.
"""

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpukit.errors import FormatError, one_line
from gpukit.formats.gguf_fields import TensorInfo
from gpukit.formats.gguf_reader import GGUFFile, is_gguf
from gpukit.formats.positioned import open_to_read

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
SQUARES, COUNTS, SUMS, STATS = ".in_sum2", ".counts", ".in_sum", ".stats"
CHUNKS, CHUNK_SIZE, DATASETS = "imatrix.chunk_count", "imatrix.chunk_size", "imatrix.datasets"
MAX_NAME = 1 << 12
# Larger counts are no whole numbers in the arithmetic of readers.
MOST_ROWS = 1 << 53


@dataclass(frozen=True)
class Imatrix:
    """Importance by weight name, float32 `[matrices * columns]`, and where it comes from: the file
    `path`, or with `is_file` false the text there.

    `silent` says of how many matrices of a weight nothing is known, where there are such.
    """

    path: Path
    entries: Mapping[str, Floats]
    dataset: str = ""
    chunks: int = 0
    silent: Mapping[str, int] = field(default_factory=dict)
    is_file: bool = True


@dataclass(frozen=True)
class Sums:
    """What came in at the columns of a weight, which may be several matrices.

    squares  float32 `[matrices, columns]`, sums of squares
    counts   int64 `[matrices]`, how many rows they were taken over
    sums     float32 `[matrices, columns]`, sums of the values; None where nobody has taken them
    """

    squares: Floats
    counts: Counts
    sums: Floats | None = None

    def means(self) -> Floats:
        """float32 `[matrices * columns]`: the mean squares, 1 where nothing came, as llama-quantize
        has them."""
        counts = self.counts.astype(np.float32)[:, None]
        with np.errstate(all="ignore"):
            found = np.where(counts > 0, self.squares / counts, np.float32(1))
        return found.reshape(-1).astype(np.float32)


@dataclass(frozen=True)
class Collection:
    """What was collected: sums by weight name, over so many chunks of `chunk_size` tokens of texts.

    Of the older format `chunk_size` is 0, counts are calls, one a weight whatever it holds, and
    `squares` the mean squares times that.
    """

    entries: Mapping[str, Sums]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int


def read_imatrix(path: Path) -> Imatrix:
    """The importance matrix in the file `path`; `FormatError` for one that is malformed.

    What llama-quantize makes of it: sums over counts, 1 for experts that nothing came to.
    """
    found = read_collection(path, squares_only=True)
    return as_imatrix(found, Path(path))


def as_imatrix(found: Collection, path: Path) -> Imatrix:
    """What was collected as importance that is known by `path`."""
    silent = {name: int((sums.counts == 0).sum()) for name, sums in found.entries.items()}
    return Imatrix(
        path,
        {name: _means(sums, found.chunk_size) for name, sums in found.entries.items()},
        found.datasets[0] if found.datasets else "",
        found.chunks,
        {name: count for name, count in silent.items() if count and found.chunk_size},
    )


def _means(sums: Sums, chunk_size: int) -> Floats:
    if chunk_size or sums.counts[0] > 0:
        return sums.means()
    return sums.squares.reshape(-1)  # of the older format, without calls: as they are


def read_collection(path: Path, *, squares_only: bool = False) -> Collection:
    """The sums in the file `path`, those of values only on demand; `FormatError` for a file that is
    malformed."""
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path}: no such file; an importance matrix is needed")
    found = _read_gguf(path, squares_only) if is_gguf(path) else _read_dat(path)
    if not found.entries:
        raise FormatError(f"{path}: an importance matrix without entries")
    for name, sums in found.entries.items():
        # What stands where nothing came is not looked at, as in llama.cpp.
        wrong = ~np.isfinite(sums.squares) & ((sums.counts > 0)[:, None] | (not found.chunk_size))
        if wrong.any():
            column = int(np.flatnonzero(wrong)[0])
            raise FormatError(
                f"{path}: {one_line(name)}: value {column} of {wrong.size} is "
                f"{sums.squares.reshape(-1)[column]}; make the importance matrix again"
            )
    return found


def _read_gguf(path: Path, squares_only: bool) -> Collection:
    with GGUFFile(path) as file:
        lacking = [key for key in (CHUNKS, CHUNK_SIZE, DATASETS) if key not in file.fields]
        if lacking:
            raise FormatError(f"{path}: no importance matrix: it has no {lacking[0]}")
        datasets, chunks, size = (file.get(key) for key in (DATASETS, CHUNKS, CHUNK_SIZE))
        if not isinstance(datasets, list) or not isinstance(chunks, int):
            raise FormatError(f"{path}: {DATASETS} or {CHUNKS} is of another type")
        if not isinstance(size, int) or size < 1:
            raise FormatError(f"{path}: {CHUNK_SIZE} is {size!r:.40}; a number of tokens is wanted")
        entries = {
            name.removesuffix(SQUARES): _sums(file, name, squares_only)
            for name in file.tensors
            if name.endswith(SQUARES)
        }
    return Collection(entries, tuple(map(str, datasets)), chunks, size)


def _sums(file: GGUFFile, name: str, squares_only: bool) -> Sums:
    weight = name.removesuffix(SQUARES)
    counts = file.tensors.get(weight + COUNTS)
    squares, values = file.tensors[name], file.tensors.get(weight + SUMS)
    where = f"{file.path}: {one_line(weight)}"
    if counts is None:
        raise FormatError(f"{where}: {SQUARES} without {COUNTS}")
    matrices = counts.n_elements
    if squares.type != "F32" or counts.type != "F32" or not matrices or (
        not squares.n_elements or squares.n_elements % matrices
    ):  # fmt: skip
        raise FormatError(
            f"{where}: {squares.n_elements} sums ({squares.type}) for "
            f"{matrices} counts ({counts.type}); float32 and a multiple are needed"
        )
    if values is not None and (values.type, values.ne) != ("F32", squares.ne):
        raise FormatError(
            f"{where}: {SUMS} has {values.n_elements} values ({values.type}), {SQUARES} "
            f"{squares.n_elements} (F32)"
        )
    rows = _floats(file, counts)
    if bad := [count for count in rows.tolist() if not 0 <= count < MOST_ROWS]:
        raise FormatError(f"{where}: a count of {bad[0]}; make the importance matrix again")
    return Sums(
        _floats(file, squares).reshape(matrices, -1),
        # llama.cpp rounds what is no whole number.
        np.floor(rows.astype(np.float64) + 0.5).astype(np.int64),
        None if values is None or squares_only else _floats(file, values).reshape(matrices, -1),
    )


def _floats(file: GGUFFile, info: TensorInfo) -> Floats:
    return file.read(info).view("<f4").astype(np.float32, copy=False)


def _read_dat(path: Path) -> Collection:
    try:
        fd = open_to_read(path)
        try:
            # Mapped: of a file that is something else, however large, little is read.
            data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if os.fstat(fd).st_size else b""
        finally:
            os.close(fd)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    entries: dict[str, Sums] = {}
    reader = _Dat(path, data)
    count = reader.number("the number of entries")
    if count < 1 or count > len(data) // 12:
        raise FormatError(f"{path}: no importance matrix: {count} entries in {len(data)} bytes")
    for index in range(count):
        name = reader.text(f"the name of entry {index}")
        if not name.isprintable():
            reader.fail(f"the name of entry {index} is {name[:80]!r}")
        calls = reader.number(f"{name}: calls")
        values = reader.floats(f"{name}: values")
        if name in entries:
            reader.fail(f"{name} stands twice")
        entries[name] = Sums(values[None], np.array([max(calls, 0)], np.int64))
    chunks, dataset = 0, ""
    if not reader.at_end():  # files of old versions end here
        chunks = max(reader.number("the number of chunks"), 0)
        dataset = reader.text("the data set") if not reader.at_end() else ""
    return Collection(entries, (dataset,) if dataset else (), chunks, 0)


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
