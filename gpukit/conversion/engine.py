"""What computes between reading and writing: the interface, and what all of its kinds share.

`conversion` computes with torch on any devices, `plain` with numpy and kept programs on the CPU.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

import gpukit_kernels as kernels
from gpukit.conversion.slabs import Piece, Slab
from gpukit.errors import CheckpointError
from gpukit.formats.imatrix import Floats
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source

Bytes = NDArray[np.uint8]

# Beyond this magnitude a scale may overflow fp16; below it none can.
FP16_MAX = 65504.0
# Searches square sums of importance * x * x * level, over 256 values with levels to 127. Up to this
# importance * x * x the squares are well within float32.
WEIGHTED_MAX = 1e12
# Values of a slab that the CPU decodes again to tell the error, at least; a GPU decodes all.
SAMPLE = 1 << 15


@dataclass(frozen=True)
class Buffer:
    """Host memory for a slab's stored bytes; `tensor` is the same memory where torch has it."""

    memory: memoryview
    tensor: Any = None


class Lane(Protocol):
    """One stream of work: `depth` slabs are under way in it before the first is waited for."""

    @property
    def depth(self) -> int: ...


L = TypeVar("L", bound=Lane)
W = TypeVar("W")


class Engine(ABC, Generic[L, W]):
    """Turns slabs of `source` into bytes of `outputs`, each lane on a thread of its own.

    `begin` launches the work on a slab in a lane and gives something to call `end` with, which
    gives the bytes of each piece on the host. `CheckpointError` for values that are not finite,
    before or after.
    """

    lanes: Sequence[L]

    def __init__(self, source: Source, outputs: Sequence[PlannedOutput]) -> None:
        self.source = source
        self.outputs = outputs
        self._fidelity = [Fidelity() for _ in outputs]
        self._lock = Lock()

    @abstractmethod
    def buffer(self, nbytes: int) -> Buffer: ...

    @abstractmethod
    def begin(self, slab: Slab, buffer: Buffer, lane: L) -> W: ...

    @abstractmethod
    def end(self, work: W) -> list[memoryview]: ...

    def running(self) -> AbstractContextManager[None]:
        """What holds while the lanes' threads begin and work."""
        return nullcontext()

    def working(self) -> AbstractContextManager[None]:
        """What holds in a lane's thread."""
        return nullcontext()

    def fidelity(self) -> tuple[Fidelity, ...]:
        """What each output lost; nothing for one that only moved."""
        return tuple(self._fidelity)

    def lost(self, piece: Piece, error: float, square: float, compared: int) -> None:
        """Add to the sums of a piece's tensor."""
        with self._lock:
            self._fidelity[piece.output].add(Fidelity(error, square, compared))

    def passes(self, piece: Piece) -> bool:
        """Whether the piece's stored bytes are its result."""
        output = self.outputs[piece.output]
        return self.source.passes(output.index, output.spec.type)

    def columns(self, piece: Piece, width: int) -> Floats | None:
        """float32 `[matrices, width]`: the importance of the piece's columns, of each expert its
        own; None without."""
        output = self.outputs[piece.output]
        if output.importance is None:
            return None
        columns = output.importance.reshape(-1, width)
        of_one = max(output.spec.rows // len(columns), 1)
        first = piece.row // of_one
        return columns[first : max(first + piece.rows // of_one, first + 1)]

    def check(self, piece: Piece, largest: float, blocks: Bytes, data: Bytes) -> None:
        """`CheckpointError` where values are not finite or do not stay so; `largest` is their
        largest magnitude, NaN if there is one, `data` the slab's stored bytes."""
        if not largest < math.inf:
            self._refuse(piece, data)
        output = self.outputs[piece.output]
        kind = output.spec.type
        weight = 0.0 if output.importance is None else float(output.importance.max())
        tame = largest <= FP16_MAX and weight * max(largest, largest**2) <= WEIGHTED_MAX
        if tame or self.passes(piece):
            return
        import torch

        decoded = kernels.dequantize(torch.from_numpy(blocks).view(piece.rows, -1), kind)
        if bool(torch.isfinite(decoded).all()):
            return
        what = f"{self.source.path}: {output.spec.name}: a value of magnitude {largest:g}"
        if largest > FP16_MAX:
            raise CheckpointError(f"{what} overflows {kind}; choose BF16 or F32 for this model")
        raise CheckpointError(
            f"{what} with an importance of up to {weight:g} overflows the search of {kind}; "
            "the importance matrix is damaged, or scale it down"
        )

    def _refuse(self, piece: Piece, data: Bytes) -> NoReturn:
        """Name the first value that is not finite."""
        import torch

        output = self.outputs[piece.output]
        stored = torch.from_numpy(data)[piece.begin : piece.begin + piece.stored]
        x = self.source.values(output.index, piece.row, piece.rows, stored)
        flat = x.reshape(-1)
        first = int(torch.nonzero(~torch.isfinite(flat))[0])
        row, column = divmod(first, x.shape[-1])
        raise CheckpointError(
            f"{self.source.path}: {output.spec.name}: value "
            f"[{piece.row + row}, {column}] is {float(flat[first])}; "
            "a model with such weights cannot be quantised"
        )
