"""Rows of weights that a checkpoint has as small numbers packed in words, with scales beside them.

Each class fills a buffer with rows of a view: NVFP4 as the blocks of a GGUF, bit for bit; whole
numbers as float32(number - zero) * float32(scale), as llama.cpp's converter computes them.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpukit.errors import CheckpointError
from gpukit.formats.floats import FLOATS, widened
from gpukit.formats.gguf_fields import type_sizes
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.views import Columns, Read

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# Numbers of NVFP4 that share a scale, and bytes that they take.
SIXTEEN, EIGHT = 16, 8
WORD = 32


@dataclass(frozen=True)
class Sixteens:
    """Rows of NVFP4 blocks of a GGUF: `codes` are uint8 `[rows, width / 2]`, two numbers a byte in
    their order, the first in the lower half; `scales` are E4M3 `[rows, width / 16]`.

    A block of a GGUF has four scales without their signs before 64 numbers, of each sixteen number
    i and i + 8 in one byte. With `order` each so many rows are in that order.
    """

    codes: StoredTensor
    scales: StoredTensor
    order: tuple[int, ...] = (0,)

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        size = type_sizes()["NVFP4"].nbytes
        out = np.frombuffer(buffer, np.uint8).reshape(-1, size)
        count = len(buffer) // (self.scales.shape[1] // 4 * size)
        scales = self._rows(read, self.scales, row, count).reshape(-1, 4)
        codes = self._rows(read, self.codes, row, count).reshape(-1, 4, EIGHT)
        out[:, :4] = scales & 0x7F
        low, high = codes[:, :, : EIGHT // 2], codes[:, :, EIGHT // 2 :]
        packed = out[:, 4:].reshape(-1, 4, EIGHT)
        packed[:, :, ::2] = (low & 15) | (high << 4)
        packed[:, :, 1::2] = (low >> 4) | (high & 0xF0)
        out[:, 4:] = packed.reshape(len(out), -1)

    def _rows(self, read: Read, tensor: StoredTensor, row: int, count: int) -> NDArray[np.uint8]:
        """uint8 `[count, bytes of a row]`, in the order of the result."""
        group, each = len(self.order), tensor.nbytes // tensor.shape[0]
        first = row // group * group
        last = -(-(row + count) // group) * group
        found = np.empty((last - first, each), np.uint8)
        read(tensor, found.reshape(-1).data, first * each)
        if group > 1:
            found = found.reshape(-1, group, each)[:, list(self.order)].reshape(-1, each)
        return found[row - first : row - first + count]


@dataclass(frozen=True)
class Packed:
    """float32 rows of compressed-tensors' packed whole numbers: int32 `[rows, words]` of `bits`
    each, the first lowest, `width` of them a row.

    `scales` are `[rows, groups]`, `zeros` int32 `[rows / numbers a word, groups]` packed along the
    rows, else half of what `bits` hold; `groups` are int32 `[width]`, the group of each column,
    else all are as wide.
    """

    words: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    groups: StoredTensor | None
    bits: int
    width: int

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        out = np.frombuffer(buffer, np.float32).reshape(-1, self.width)
        count, number = len(out), self.scales.shape[1]
        numbers = unpacked(rows_of(read, self.words, row, count), self.bits)[:, : self.width]
        group = columns(read, self.groups, self.width, number)
        each = floats_of(read, self.scales, row, count)
        numbers -= self._zeros(read, row, count)[:, group]
        np.multiply(numbers, each[:, group], out=out, dtype=np.float32, casting="unsafe")

    def _zeros(self, read: Read, row: int, count: int) -> Ints:
        if self.zeros is None:
            return np.full((count, self.scales.shape[1]), 1 << (self.bits - 1), np.int32)
        a_word = WORD // self.bits
        first, last = row // a_word, -(-(row + count) // a_word)
        words = rows_of(read, self.zeros, first, last - first)
        found = unpacked(words.T, self.bits).T
        return found[row - first * a_word :][:count]


@dataclass(frozen=True)
class Grouped:
    """float32 rows of GPTQ's whole numbers: `words` int32 `[width / numbers a word, rows]`, packed
    along the width; `zeros` int32 `[groups, rows / numbers a word]`, less `less`; `scales`
    `[groups, rows]`; `groups` int32 `[width]`, the group of each column."""

    words: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor
    groups: StoredTensor
    bits: int
    less: int

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        height = self.words.shape[0]
        width = self.groups.shape[0]
        out = np.frombuffer(buffer, np.float32).reshape(-1, width)
        turned = np.empty((len(out), height), np.int32)
        whole = replace(self.words, shape=(1, *self.words.shape))
        Columns(whole, 0, 1)(read, turned.reshape(-1).view(np.uint8).data, row)
        numbers = unpacked(turned, self.bits)
        number, rows = self.scales.shape
        group = columns(read, self.groups, width, number)
        zeros = unpacked(rows_of(read, self.zeros, 0, number), self.bits)[:, :rows] + self.less
        mine = slice(row, row + len(out))
        scales = floats_of(read, self.scales, 0, number)[:, mine].T
        numbers -= zeros[:, mine].T[:, group]
        np.multiply(numbers, scales[:, group], out=out, dtype=np.float32, casting="unsafe")


@dataclass(frozen=True)
class Bytes:
    """float32 rows of int8 `[rows, width]`, less `zeros` int8 `[rows, groups]` where there are
    some; `scales` `[rows, groups]`, of groups as wide, each of `tall` rows."""

    numbers: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    tall: int
    wide: int

    def __call__(self, read: Read, buffer: memoryview, row: int) -> None:
        width = self.numbers.shape[-1]
        out = np.frombuffer(buffer, np.float32).reshape(-1, width)
        numbers = rows_of(read, self.numbers, row, len(out)).astype(np.float32)
        group = np.arange(width) // self.wide
        each = np.arange(row, row + len(out)) // self.tall
        first, count = int(each[0]), int(each[-1] - each[0]) + 1
        if self.zeros is not None:
            zeros = rows_of(read, self.zeros, first, count).astype(np.float32)
            numbers -= zeros[each - first][:, group]
        out[:] = numbers * floats_of(read, self.scales, first, count)[each - first][:, group]


DTYPES = {"I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64}


def rows_of(read: Read, tensor: StoredTensor, row: int, count: int) -> NDArray[np.int32]:
    """`[count, values of a row]` of whole numbers, as they are stored."""
    dtype = np.dtype(DTYPES[tensor.dtype])
    each = tensor.nbytes // max(tensor.shape[0], 1)
    found = np.empty(count * each, np.uint8)
    read(tensor, found.data, row * each)
    whole: NDArray[np.int32] = found.view(dtype).reshape(count, -1)
    return whole


def floats_of(read: Read, tensor: StoredTensor, row: int, count: int) -> Floats:
    """float32 `[count, values of a row]` of F32, F16 or BF16."""
    each = tensor.nbytes // max(tensor.shape[0], 1)
    found = np.empty(count * each, np.uint8)
    read(tensor, found.data, row * each)
    values: Floats = widened(found.view(FLOATS[tensor.dtype])).astype(np.float32, copy=False)
    return values.reshape(count, -1)


def unpacked(words: Ints, bits: int) -> Ints:
    """int32 `[rows, words * numbers a word]`: the first number of a word is the lowest."""
    shifts = np.arange(0, WORD - bits + 1, bits, dtype=np.int32)
    found: Ints = (words[:, :, None] >> shifts) & np.int32((1 << bits) - 1)
    return found.reshape(len(words), -1)


def columns(read: Read, groups: StoredTensor | None, width: int, number: int) -> NDArray[np.intp]:
    """The group of each of `width` columns, of `number`."""
    if groups is None:
        return np.arange(width) // -(-width // number)
    found = np.empty(width, DTYPES[groups.dtype])
    read(groups, found.view(np.uint8).data, 0)
    if width and not 0 <= found.min() <= found.max() < number:
        raise CheckpointError(
            f"{groups.path}: {groups.name} names groups {int(found.min())} to {int(found.max())} "
            f"of {number}; fetch the folder again"
        )
    return found.astype(np.intp)
