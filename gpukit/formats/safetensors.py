"""Reads safetensors files, without copying and without torch.

The header is checked before its use: sizes against the file, ranges against shapes and each other.
Data is read at positions into buffers that the caller brings, from any number of threads.

Format: 8 bytes header length, JSON header, data (https://github.com/huggingface/safetensors).
"""

import json
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from gpukit.errors import SafetensorsError
from gpukit.formats.closing import Closing
from gpukit.formats.pointers import POINTER, is_pointer
from gpukit.formats.positioned import open_to_read, read_at

# Bits of a value of each dtype.
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
}  # fmt: skip

# The reference implementation reads no larger headers either.
MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 64  # as many as torch and NumPy can have at most


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: dtype as the header spells it, shape outermost dimension first, and
    its absolute position and size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    path: Path


class SafetensorsFile(Closing):
    """An open safetensors file; `tensors` by name in the header's order.

    Raises `SafetensorsError` (one line, with file and tensor) for anything malformed or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._fd = open_to_read(self.path)
        except FileNotFoundError:
            raise SafetensorsError(f"{self.path}: no such file") from None
        except OSError as error:
            raise SafetensorsError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self.size = os.fstat(self._fd).st_size
            header, start = self._header()
            self.metadata: dict[str, str] = self._metadata(header.pop("__metadata__", {}))
            self.tensors: Mapping[str, StoredTensor] = {
                name: self._tensor(name, entry, start) for name, entry in header.items()
            }
            self._check_ranges(start)
        except OSError as error:
            os.close(self._fd)
            raise SafetensorsError(f"{self.path}: cannot be read: {error.strerror}") from None
        except BaseException:
            os.close(self._fd)
            raise

    def _fail(self, what: str) -> NoReturn:
        raise SafetensorsError(f"{self.path}: malformed safetensors file: {what}")

    def _header(self) -> tuple[dict[str, Any], int]:
        if self.size < 8:
            self._fail(f"{self.size} bytes; the header's length alone takes 8")
        prefix = bytearray(8)
        read_at(self._fd, memoryview(prefix), 0)
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER and is_pointer(self.path):
            raise SafetensorsError(f"{self.path}: {POINTER}")
        if length > MAX_HEADER:
            self._fail(f"the header claims {length} bytes; {MAX_HEADER} are possible")
        if length > self.size - 8:
            self._fail(f"the header claims {length} bytes, {self.size - 8} follow: truncated?")
        data = bytearray(length)
        read_at(self._fd, memoryview(data), 8)
        try:
            header = json.loads(data.decode(), object_pairs_hook=self._unique)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            self._fail(f"the header is no JSON: {error}")
        if not isinstance(header, dict):
            self._fail("the header is no JSON object")
        return header, 8 + length

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            self._fail(f"{twice!r} stands twice in the header")
        return found

    def _metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            self._fail("__metadata__ is no map of strings")
        return value

    def _tensor(self, name: str, entry: Any, start: int) -> StoredTensor:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            self._fail(f"{name}: an entry needs dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            self._fail(f"{name}: unknown dtype {dtype!r}; known: {', '.join(DTYPE_BITS)}")
        if not _naturals(shape):
            self._fail(f"{name}: shape {str(shape)[:80]} is no list of natural numbers")
        if len(shape) > MAX_DIMENSIONS:
            # Also keeps the product below from growing without bounds.
            self._fail(f"{name}: {len(shape)} dimensions; {MAX_DIMENSIONS} are possible")
        if not _naturals(offsets) or len(offsets) != 2:
            self._fail(f"{name}: data_offsets {str(offsets)[:80]} are no pair of natural numbers")
        begin, end = offsets
        bits = prod(shape) * DTYPE_BITS[dtype]
        if end - begin != -(-bits // 8) or bits % 8:
            self._fail(
                f"{name}: {dtype} {shape} takes {-(-bits // 8)} bytes, data_offsets span "
                f"{end - begin}"
            )
        if start + end > self.size:
            raise SafetensorsError(
                f"{self.path}: truncated: {name} needs bytes up to {start + end}, "
                f"the file has {self.size}; fetch it again"
            )
        return StoredTensor(name, dtype, tuple(shape), start + begin, end - begin, self.path)

    def _check_ranges(self, start: int) -> None:
        """Data follows without overlaps and holes, and fills the file."""
        at = start
        for tensor in sorted(self.tensors.values(), key=lambda t: (t.offset, t.nbytes)):
            if tensor.offset < at:
                self._fail(f"{tensor.name} begins at byte {tensor.offset}, inside another tensor")
            if tensor.offset > at:
                self._fail(f"{tensor.name} begins at byte {tensor.offset}, a hole from {at} on")
            at += tensor.nbytes
        if at != self.size:
            self._fail(f"{self.size - at} bytes follow the last tensor, which ends at {at}")

    def read_into(self, tensor: StoredTensor, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; safe from several threads."""
        if start < 0 or start + len(buffer) > tensor.nbytes:
            raise ValueError(f"{tensor.name}: {start} + {len(buffer)} bytes of {tensor.nbytes}")
        try:
            got = read_at(self._fd, buffer, tensor.offset + start)
        except OSError as error:
            raise SafetensorsError(f"{self.path}: {tensor.name}: {error.strerror}") from None
        if got != len(buffer):
            raise SafetensorsError(
                f"{self.path}: {tensor.name}: the file ends at byte {tensor.offset + start + got}, "
                f"{len(buffer) - got} bytes short; it has changed since it was opened"
            )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)
