"""One block of memory in which the tensors of a recorded tile lie, each at a place of its own."""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from gpukit_kernels.cpu.program import ALIGNMENT

# Room for a recording; only what is touched is ever there.
MOST_BYTES = 1 << 28


class Arena:
    """Memory whose pieces are free again when no tensor refers to them."""

    def __init__(self) -> None:
        self._memory = numpy.zeros(MOST_BYTES, dtype=numpy.uint8)
        self._begin = self._memory.ctypes.data
        self._free = [(0, MOST_BYTES)]
        self.size = 0

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        values = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        nbytes = values * dtype.itemsize
        piece = self._take(-(-nbytes // ALIGNMENT) * ALIGNMENT)
        return torch.from_numpy(piece)[:nbytes].view(dtype).as_strided(shape, stride)

    def _take(self, nbytes: int) -> Any:
        for i, (at, room) in enumerate(self._free):
            if room >= nbytes:
                self._free[i : i + 1] = [(at + nbytes, room - nbytes)] if room > nbytes else []
                self.size = max(self.size, at + nbytes)
                piece = self._memory[at : at + nbytes]
                # The tensor's storage holds this array, and nothing else does.
                weakref.finalize(piece, self._give_back, at, nbytes).atexit = False
                return piece
        raise RuntimeError(f"a tile takes more than {MOST_BYTES} bytes")

    def _give_back(self, at: int, nbytes: int) -> None:
        merged: list[tuple[int, int]] = []
        for begin, room in sorted([*self._free, (at, nbytes)]):
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((begin, room))
        self._free = merged

    def holds(self, value: object) -> bool:
        """Whether `value` is a tensor that lies here."""
        return isinstance(value, Tensor) and 0 <= value.data_ptr() - self._begin < MOST_BYTES

    def place(self, tensor: Tensor) -> int:
        """Where `tensor` begins; RuntimeError for one that is elsewhere."""
        if not self.holds(tensor):
            raise RuntimeError("a tensor of a stage is not in the arena")
        return tensor.data_ptr() - self._begin
