"""Tensors that a checkpoint holds in another form than a GGUF: packed, interleaved, transposed.

A view is taken for a tensor of the checkpoint, and its bytes are made of others when they are read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpukit.formats.gguf_fields import TensorSpec, type_sizes
from gpukit.formats.safetensors import DTYPE_BITS, StoredTensor

# Reads a tensor's bytes from a position on into a buffer.
Read = Callable[[StoredTensor, memoryview, int], None]
# Fills a buffer with a view's rows from one on.
Fill = Callable[[Read, memoryview, int], None]

# The types of blocks that are carried over as they are.
PACKED = "MXFP4"
CARRIED = (PACKED, "NVFP4")


@dataclass(frozen=True)
class View:
    """What is taken for `tensor`, made of `sources`, which are taken for nothing themselves; it
    stands in the place of the last of them, or if `late` behind all other tensors."""

    tensor: StoredTensor
    sources: tuple[StoredTensor, ...]
    fill: Fill
    late: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        sources: tuple[StoredTensor, ...],
        fill: Fill,
        *,
        late: bool = False,
    ) -> "View":
        """A view called `name`; `shape` is outermost first, the last dimension that of a row."""
        if dtype in CARRIED:
            nbytes = prod(shape[:-1]) * TensorSpec(name, (shape[-1],), dtype).row_bytes
        else:
            nbytes = prod(shape) * DTYPE_BITS[dtype] // 8
        tensor = StoredTensor(name, dtype, shape, 0, nbytes, sources[-1].path)
        return cls(tensor, sources, fill, late)

    def read_into(self, read: Read, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with whole rows, those from byte `start` on."""
        if buffer:
            self.fill(read, buffer, start // row_bytes(self.tensor))


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows a tensor of `shape` (outermost first) has, as spans count them."""
    return prod(shape[:-1]) if len(shape) > 1 else prod(shape)


def row_bytes(tensor: StoredTensor) -> int:
    """Bytes of a row, as spans count them."""
    return tensor.nbytes // max(rows_of(tensor.shape), 1)


def with_views(tensors: Iterable[StoredTensor], views: Sequence[View]) -> Iterator[StoredTensor]:
    """`tensors` with each view in its place."""
    sources = {source.name for view in views for source in view.sources}
    ready: dict[str, list[StoredTensor]] = {}
    for view in views:
        if not view.late:
            ready.setdefault(view.sources[-1].name, []).append(view.tensor)
    for tensor in tensors:
        if tensor.name not in sources:
            yield tensor
        yield from ready.get(tensor.name, ())
    yield from (view.tensor for view in views if view.late)


@dataclass(frozen=True)
class Packed:
    """Rows of MXFP4 blocks of a GGUF: row `first` and every `step`-th behind it of a tensor whose
    `codes` are uint8 `[..., rows, groups, 16]`, two a byte in the order of the values, the first in
    the lower half, and whose exponents are the `scales`, uint8 `[..., rows, groups]`.

    A block of a GGUF has its exponent before them, and value i and i + 16 in one byte.
    """

    codes: StoredTensor
    scales: StoredTensor
    first: int
    step: int

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        size = type_sizes()[PACKED].nbytes
        groups = self.scales.shape[-1]
        count = len(buffer) // (groups * size)
        codes = self._rows(read, self.codes, row, count).reshape(-1, size - 1)
        out = np.frombuffer(buffer, np.uint8).reshape(-1, size)
        out[:, 0] = self._rows(read, self.scales, row, count).reshape(-1)
        half = (size - 1) // 2
        front, back = codes[:, :half], codes[:, half:]
        out[:, 1::2] = (front & 15) | (back << 4)
        out[:, 2::2] = (front >> 4) | (back & 0xF0)

    def _rows(self, read: Read, tensor: StoredTensor, row: int, count: int) -> NDArray[np.uint8]:
        """uint8 `[count, bytes of a row]`."""
        each = tensor.nbytes // prod(self.scales.shape[:-1])
        found = np.empty(((count - 1) * self.step + 1, each), np.uint8)
        read(tensor, found.reshape(-1).data, (row * self.step + self.first) * each)
        return found[:: self.step]


@dataclass(frozen=True)
class Columns:
    """Column `first` and every `step`-th behind it of each matrix of a stack, as rows."""

    source: StoredTensor
    first: int
    step: int

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        _, height, width = self.source.shape
        dtype = _bits(self.source)
        out = np.frombuffer(buffer, dtype).reshape(-1, height)
        each, done = width // self.step, 0
        while done < len(out):
            matrix, column = divmod(row + done, each)
            count = min(each - column, len(out) - done)
            begin = self.first + column * self.step
            some = (begin, (count - 1) * self.step + 1)
            out[done : done + count] = self._some(read, matrix, *some)[:, :: self.step].T
            done += count

    def _some(self, read: Read, matrix: int, first: int, count: int) -> NDArray[Any]:
        """`count` neighbouring columns of a matrix, `[height, count]`."""
        _, height, width = self.source.shape
        dtype = _bits(self.source)
        at = matrix * height * width
        if count + self.step > width:
            found = np.empty((height, width), dtype)
            read(self.source, _bytes(found), at * dtype.itemsize)
            return found[:, first : first + count]
        found = np.empty((height, count), dtype)
        for number, line in enumerate(found):
            read(self.source, _bytes(line), (at + number * width + first) * dtype.itemsize)
        return found


@dataclass(frozen=True)
class Values:
    """Value `first` and every `step`-th behind it of each row."""

    source: StoredTensor
    first: int
    step: int

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        dtype, width = _bits(self.source), self.source.shape[-1]
        out = np.frombuffer(buffer, dtype).reshape(-1, width // self.step)
        found = np.empty((len(out), width), dtype)
        read(self.source, _bytes(found), row * width * dtype.itemsize)
        out[:] = found[:, self.first :: self.step]


def _bits(tensor: StoredTensor) -> "np.dtype[Any]":
    """An unsigned number as wide as a value of `tensor`."""
    return np.dtype(f"u{DTYPE_BITS[tensor.dtype] // 8}")


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
