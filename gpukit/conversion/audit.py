"""What every engine looks at: whether values are finite and stay so, and how much was lost."""

import math
from collections.abc import Sequence
from threading import Lock
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

import gpukit_kernels as kernels
from gpukit.conversion.slabs import Piece, passes
from gpukit.errors import CheckpointError
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source

Bytes = NDArray[np.uint8]

# Beyond this magnitude a scale may overflow fp16; below it none can.
FP16_MAX = 65504.0
# Searches square sums of importance * x * x * level, over 256 values with levels to 127. Up to this
# importance * x * x the squares are well within float32.
WEIGHTED_MAX = 1e12
# Values of a piece that are decoded again to tell the error, at least.
SAMPLE = 1 << 15


class Audit:
    """The audit of one pass from `source` to `outputs`, and the sums over it; safe from several
    threads."""

    def __init__(self, source: Source, outputs: Sequence[PlannedOutput]) -> None:
        self._source = source
        self._outputs = outputs
        self._fidelity = [Fidelity() for _ in outputs]
        self._changes = [Change() for _ in outputs]
        self._lock = Lock()

    def fidelity(self) -> tuple[Fidelity, ...]:
        """What each output lost; nothing for one that only moved."""
        return tuple(self._fidelity)

    def changes(self) -> tuple[Change, ...]:
        """What adapters did to each output; nothing for one that they do not concern."""
        return tuple(self._changes)

    def changed(self, piece: Piece, change: Change) -> None:
        """Add to the sums of a piece's tensor."""
        with self._lock:
            self._changes[piece.output].add(change)

    def lost(self, piece: Piece, error: float, square: float, compared: int) -> None:
        """Add to the sums of a piece's tensor."""
        with self._lock:
            self._fidelity[piece.output].add(Fidelity(error, square, compared))

    def finite(self, piece: Piece, largest: float, blocks: Bytes, data: Bytes) -> None:
        """`CheckpointError` where values are not finite or do not stay so; `largest` is their
        largest magnitude, NaN if there is one, `data` the slab's stored bytes."""
        if not largest < math.inf:
            self._refuse(piece, data)
        output = self._outputs[piece.output]
        kind = output.spec.type
        weight = 0.0 if output.importance is None else float(output.importance.max())
        tame = largest <= FP16_MAX and weight * max(largest, largest**2) <= WEIGHTED_MAX
        if tame or passes(self._source, output):
            return
        import torch

        decoded = kernels.dequantize(torch.from_numpy(blocks).view(piece.rows, -1), kind)
        if bool(torch.isfinite(decoded).all()):
            return
        what = f"{self._source.path}: {output.spec.name}: a value of magnitude {largest:g}"
        if largest > FP16_MAX:
            raise CheckpointError(f"{what} overflows {kind}; choose BF16 or F32 for this model")
        raise CheckpointError(
            f"{what} with an importance of up to {weight:g} overflows the search of {kind}; "
            "the importance matrix is damaged, or scale it down"
        )

    def _refuse(self, piece: Piece, data: Bytes) -> NoReturn:
        """Name the first value that is not finite."""
        import torch

        output = self._outputs[piece.output]
        stored = torch.from_numpy(data)[piece.begin : piece.begin + piece.stored]
        x = self._source.values(output.index, piece.row, piece.rows, stored)
        flat = x.reshape(-1)
        first = int(torch.nonzero(~torch.isfinite(flat))[0])
        row, column = divmod(first, x.shape[-1])
        raise CheckpointError(
            f"{self._source.path}: {output.spec.name}: value "
            f"[{piece.row + row}, {column}] is {float(flat[first])}; "
            "a model with such weights cannot be quantised"
        )
