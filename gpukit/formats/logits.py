"""Logits files of llama-perplexity (--kl-divergence-base, --save-all-logits), read and written.

| bytes                    | what                                                                |
|--------------------------|---------------------------------------------------------------------|
| 8                        | `_logits_`                                                          |
| 3 x int32                | num_ctx, vocabulary, chunks                                         |
| chunks * num_ctx * int32 | the ids of the windows, BOS not put in                              |
| a record a scored token  | float32 step, float32 least, then a uint16 code for each token of   |
|                          | the vocabulary, and one more where their number is odd              |

Of each window num_ctx - 1 - num_ctx / 2 tokens are scored, those at its end.
ln p = step * code + least. Codes end 16 below the largest logit: what lies under that has code 0.
Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpukit.errors import FormatError
from gpukit.formats.atomic import appearing, disk_errors, need_room, target_of
from gpukit.formats.closing import Closing
from gpukit.formats.positioned import open_to_read, read_at, write_all

MAGIC = b"_logits_"
HEADER = struct.Struct("<8siii")
# Codes reach this far below the largest logit.
REACH = 16.0
LARGEST_CODE = 65535

Floats32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


def is_logits(path: Path) -> bool:
    """Whether the file at `path` begins as a logits file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True)
class Shape:
    """What the header says: tokens of a window, tokens of the vocabulary, windows."""

    num_ctx: int
    vocab_size: int
    chunks: int

    @property
    def scored(self) -> int:
        """Records of a window."""
        return self.num_ctx - 1 - self.num_ctx // 2

    @property
    def record(self) -> int:
        """uint16 numbers of a record."""
        return 2 * ((self.vocab_size + 1) // 2) + 4

    @property
    def start(self) -> int:
        """Where the records begin, in bytes."""
        return HEADER.size + 4 * self.chunks * self.num_ctx

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.start + 2 * self.chunks * self.scored * self.record


class LogitsFile(Closing):
    """An open logits file: `shape`, `ids` int32 `[chunks, num_ctx]`, log-probabilities on demand.

    `FormatError` for a file that is none, whose header makes no sense, or that is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._fd = open_to_read(self.path)
        except OSError as error:
            raise FormatError(f"{path}: {error.strerror}; a logits file is needed") from None
        try:
            self.shape = self._shape()
            self.ids = self._ids()
        except BaseException:
            self.close()
            raise

    def _shape(self) -> Shape:
        head = self._bytes(0, HEADER.size)
        magic, *numbers = HEADER.unpack(head)
        if magic != MAGIC:
            raise FormatError(f"{self.path}: does not begin with {MAGIC.decode()}: no logits file")
        shape = Shape(*numbers)
        if shape.num_ctx < 3 or shape.vocab_size < 1 or shape.chunks < 1:
            raise FormatError(
                f"{self.path}: windows of {shape.num_ctx} tokens, {shape.vocab_size} of a "
                f"vocabulary, {shape.chunks} chunks: no such logits file"
            )
        size = os.fstat(self._fd).st_size
        if size != shape.size:
            what = "cut off" if size < shape.size else "too long"
            raise FormatError(
                f"{self.path}: {what}: {size} bytes, its header says {shape.size} "
                f"({shape.chunks} chunks of {shape.num_ctx} tokens); make it again"
            )
        return shape

    def _ids(self) -> Ids:
        count = self.shape.chunks * self.shape.num_ctx
        ids = np.frombuffer(self._bytes(HEADER.size, 4 * count), "<i4").astype(np.int32)
        outside = np.flatnonzero((ids < 0) | (ids >= self.shape.vocab_size))
        if len(outside):
            raise FormatError(
                f"{self.path}: token {outside[0]} is {ids[outside[0]]}, the vocabulary has "
                f"{self.shape.vocab_size}; make it again"
            )
        return ids.reshape(self.shape.chunks, self.shape.num_ctx)

    def log_probabilities(self, chunk: int, first: int, count: int) -> Floats32:
        """float32 `[count, vocab_size]`: ln p behind scored tokens of window `chunk`, from the
        `first` on; `FormatError` for a record whose numbers are not finite."""
        width, shape = self.shape.record, self.shape
        at = shape.start + 2 * width * (chunk * shape.scored + first)
        rows = np.frombuffer(self._bytes(at, 2 * width * count), "<u2").reshape(count, width)
        steps = rows[:, :4].copy().view("<f4")
        if not np.isfinite(steps).all():
            raise FormatError(
                f"{self.path}: chunk {chunk + 1}: a record begins with {steps[:, 0].max()} and "
                f"{steps[:, 1].max()}, which are no numbers to compute with; make it again"
            )
        codes = rows[:, 4 : 4 + shape.vocab_size].astype(np.float32)
        found: Floats32 = steps[:, :1] * codes + steps[:, 1:]
        return found

    def _bytes(self, at: int, count: int) -> bytes:
        data = bytearray(count)
        with disk_errors(self.path):
            found = read_at(self._fd, memoryview(data), at)
        if found < count:
            raise FormatError(
                f"{self.path}: cut off: {at + found} bytes, {at + count} are needed; make it again"
            )
        return bytes(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def encoded(logits: Floats32, log_sum: Floats32) -> npt.NDArray[np.uint16]:
    """The records, uint16 `[rows, record]`, of logits `[rows, vocab_size]`; `log_sum` is ln of the
    sum of exp(logit - largest) `[rows]`."""
    top = logits.max(-1, keepdims=True)
    least = np.maximum(logits.min(-1, keepdims=True), top - np.float32(REACH))
    step = (top - least) / np.float32(LARGEST_CODE)
    # Where all logits are one, there is no step.
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
    codes = np.rint(np.maximum(inverse * (logits - least), np.float32(0)))
    rows, width = logits.shape
    found = np.zeros((rows, 2 * ((width + 1) // 2) + 4), "<u2")
    front = np.concatenate((step, least - top - log_sum[:, None]), -1).astype("<f4")
    found[:, :4] = front.view("<u2")
    found[:, 4 : 4 + width] = codes
    return found


class LogitsWriter:
    """A logits file being written, records in order; see `writing`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def add(self, logits: Floats32, log_sum: Floats32) -> None:
        """The records of the next scored tokens; arguments as for `encoded`."""
        write_all(self._fd, encoded(logits, log_sum).reshape(-1).view(np.uint8).data)


@contextmanager
def writing(path: Path, ids: Ids, vocab_size: int) -> Iterator[LogitsWriter]:
    """A new logits file at `path` of the windows `ids`, int32 `[chunks, num_ctx]`. It appears at
    the end of the block, whole, or not at all; `DiskError` where the disk refuses."""
    chunks, num_ctx = ids.shape
    shape = Shape(num_ctx, vocab_size, chunks)
    need_room(target_of(path), shape.size)
    with appearing(path) as fd:
        head = HEADER.pack(MAGIC, num_ctx, vocab_size, chunks)
        write_all(fd, memoryview(head + ids.astype("<i4").tobytes()))
        yield LogitsWriter(fd)
        if (size := os.fstat(fd).st_size) != shape.size:
            raise AssertionError(f"{path}: {size} of {shape.size} bytes")
