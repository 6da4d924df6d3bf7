"""What every engine looks at: whether values are finite and stay so, and how much was lost."""

import math
from collections.abc import Sequence
from dataclasses import astuple
from threading import Lock
from typing import Any, NoReturn

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


def sums_of(told: Any) -> tuple[Fidelity | None, Change | None]:
    """What `Audit.told` gave; `ValueError` or `TypeError` for anything else."""
    lost, change = told
    return (
        None if lost is None else Fidelity(*_numbers(lost, 3)),
        None if change is None else Change(*_numbers(change, 5)),
    )


def _numbers(found: Any, count: int) -> tuple[Any, ...]:
    """Sums, and the number of values that they are of."""
    *sums, looked_at = found
    if len(sums) != count - 1:
        raise ValueError
    return (*map(float, sums), int(looked_at))


class Audit:
    """The audit of one pass from `source` to `outputs`, and the sums over it; safe from several
    threads."""

    def __init__(self, source: Source, outputs: Sequence[PlannedOutput]) -> None:
        self._source = source
        self._outputs = outputs
        # By output and place in it: however pieces follow each other, sums are the same.
        self._fidelity: dict[tuple[int, int], Fidelity] = {}
        self._changes: dict[tuple[int, int], Change] = {}
        self._lock = Lock()

    def fidelity(self) -> tuple[Fidelity, ...]:
        """What each output lost; nothing for one that only moved."""
        found = tuple(Fidelity() for _ in self._outputs)
        for (output, _), one in sorted(self._fidelity.items(), key=lambda pair: pair[0]):
            found[output].add(one)
        return found

    def changes(self) -> tuple[Change, ...]:
        """What adapters did to each output; nothing for one that they do not concern."""
        found = tuple(Change() for _ in self._outputs)
        for (output, _), one in sorted(self._changes.items(), key=lambda pair: pair[0]):
            found[output].add(one)
        return found

    def changed(self, piece: Piece, change: Change) -> None:
        """Note the sums of a piece."""
        with self._lock:
            self._changes[piece.output, piece.at] = change

    def lost(self, piece: Piece, error: float, square: float, compared: int) -> None:
        """Note the sums of a piece."""
        with self._lock:
            self._fidelity[piece.output, piece.at] = Fidelity(error, square, compared)

    def told(self, output: int, at: int) -> list[list[float] | None]:
        """What was noted of the piece of `output` at position `at` of its data, as JSON has it."""
        with self._lock:
            found = self._fidelity.get((output, at)), self._changes.get((output, at))
        return [None if one is None else list(astuple(one)) for one in found]

    def know(self, output: int, at: int, told: Any) -> None:
        """Note again what `told` gave."""
        lost, change = sums_of(told)
        with self._lock:
            if lost is not None:
                self._fidelity[output, at] = lost
            if change is not None:
                self._changes[output, at] = change

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
        merged = with_adapters(self._source, output.index)
        what = f"{self._source.path}: {output.spec.name}: a value of magnitude {largest:g}{merged}"
        if largest > FP16_MAX:
            less = " or give them less weight" if merged else ""
            raise CheckpointError(
                f"{what} overflows {kind}; choose BF16 or F32 for this model{less}"
            )
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
        merged = with_adapters(self._source, output.index)
        raise CheckpointError(
            f"{self._source.path}: {output.spec.name}: value "
            f"[{piece.row + row}, {column}] is {float(flat[first])}{merged}; "
            "a model with such weights cannot be quantised"
        )


def with_adapters(source: Source, index: int) -> str:
    """What a message about values of tensor `index` of `source` says of what made them."""
    return " with the adapters merged" if source.changes(index) else ""
