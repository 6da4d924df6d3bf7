"""Slabs computed with torch on any devices: values, checks, blocks, the error.

`begin` launches all of it on a device, `end` looks at the results; on a GPU other slabs come
between the two.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.conversion.audit import SAMPLE, Audit
from gpukit.conversion.device_rows import DeviceRows
from gpukit.conversion.engine import Buffer
from gpukit.conversion.slabs import Piece, Slab, experts_of, passes, readings, stored_bytes
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device


@dataclass
class _Result:
    """A piece's bytes on their way to the host; on the device the least and largest
    value, and the sums for its error and for what adapters changed, if any."""

    blocks: Tensor
    extremes: Tensor | None
    sums: Tensor | None = None
    compared: int = 0
    changed: Tensor | None = None
    looked_at: int = 0

    @property
    def numbers(self) -> list[Tensor]:
        """What there is of extremes, sums and changes, in this order."""
        return [x for x in (self.extremes, self.sums, self.changed) if x is not None]


@dataclass
class Work:
    """A slab on its way through a device; `numbers`, float64, are those of all results."""

    slab: Slab
    turn: kernels.Turn
    data: Tensor
    results: list[_Result]
    numbers: Tensor | None


class Conversion:
    """The engine of torch: `places` are the devices that the slabs are dealt out to."""

    def __init__(
        self, source: Source, outputs: Sequence[PlannedOutput], places: Sequence[torch.device]
    ) -> None:
        self.source = source
        self.outputs = outputs
        self._audit = Audit(source, outputs)
        self.lanes = [lane for place in places for lane in kernels.lanes(place)]
        self._pinned = places[0].type != "cpu"
        self._backends = _backends(outputs, places[0])
        self._columns = {place: _columns(outputs, place) for place in map(_indexed, places)}

    @property
    def audit(self) -> Audit:
        return self._audit

    def fidelity(self) -> tuple[Fidelity, ...]:
        return self._audit.fidelity()

    def changes(self) -> tuple[Change, ...]:
        return self._audit.changes()

    def buffer(self, nbytes: int) -> Buffer:
        tensor = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)
        return Buffer(tensor.numpy().data, tensor)

    def running(self) -> AbstractContextManager[None]:
        return kernels.sharing(self.lanes)

    def working(self) -> AbstractContextManager[None]:
        return torch.inference_mode()

    def begin(self, slab: Slab, buffer: Buffer, lane: kernels.Lane) -> Work:
        """Launch the work on the slab's stored bytes in the lane's next turn."""
        data, turn = buffer.tensor[: stored_bytes(slab)], lane.turn()
        numbers = None
        with turn:
            here = turn.put(data)
            rows = self._rows(slab, here)
            values = [None if r is None else r.values for r in rows]
            blocks = self._blocks(slab, values, data)
            results = [
                self._result(piece, r, b, turn)
                for piece, r, b in zip(slab, rows, blocks, strict=True)
            ]
            for piece, r, b, result in zip(slab, rows, blocks, results, strict=True):
                if r is not None and r.values.numel() and self.source.changes(self._index(piece)):
                    self._change(piece, r, b, result, turn)
            # One copy for all of them: a slab may hold thousands of pieces.
            if found := [x.to(torch.float64) for result in results for x in result.numbers]:
                numbers = turn.take(torch.cat(found))
        return Work(slab, turn, data, results, numbers)

    def end(self, work: Work) -> list[memoryview]:
        work.turn.wait()
        numbers = iter(work.numbers.tolist() if work.numbers is not None else ())
        for piece, result in zip(work.slab, work.results, strict=True):
            if result.extremes is not None:
                low, high = islice(numbers, 2)
                blocks, data = result.blocks.numpy(), work.data.numpy()
                self._audit.finite(piece, max(-low, high), blocks, data)
            if result.sums is not None:
                error, square = islice(numbers, 2)
                self._audit.lost(piece, error, square, result.compared)
            if result.changed is not None:
                weight, delta, stored, along = islice(numbers, 4)
                change = Change(weight, delta, stored, along, result.looked_at)
                self._audit.changed(piece, change)
        return [result.blocks.numpy().data for result in work.results]

    def holds(self, slab: Slab) -> bool:
        if not self._pinned:
            return True  # a tensor that keeps its type is no copy
        return any(passes(self.source, self.outputs[piece.output]) for piece in slab)

    def _index(self, piece: Piece) -> int:
        return self.outputs[piece.output].index

    def _rows(self, slab: Slab, data: Tensor) -> list[DeviceRows | None]:
        """The rows of each piece, the same object for those that share them; None for bytes that
        pass as they are and that nobody can decode."""
        found: list[DeviceRows | None] = []
        for pieces in readings(slab, self.outputs):
            first = pieces[0]
            stored = data[first.begin : first.begin + first.stored]
            rows = DeviceRows(self.source, self._index(first), first, stored)
            for output in (self.outputs[piece.output] for piece in pieces):
                known = output.source_type in kernels.QUANTS
                found.append(rows if known or not passes(self.source, output) else None)
        return found

    def _blocks(self, slab: Slab, values: Sequence[Tensor | None], data: Tensor) -> list[Tensor]:
        """uint8 for each piece on the device, or on the host what passes from there as it is;
        pieces that become one type share a launch."""
        blocks: dict[int, Tensor] = {}
        together: dict[tuple[object, ...], list[int]] = {}
        for at, (piece, x) in enumerate(zip(slab, values, strict=True)):
            output = self.outputs[piece.output]
            kind = output.spec.type
            if x is None or passes(self.source, output):
                blocks[at] = data[piece.begin : piece.begin + piece.stored]
            elif kind in TORCH_TYPES:
                # Torch's own rounding differs in NaNs only, which are refused.
                blocks[at] = x.to(TORCH_TYPES[kind]).contiguous().view(torch.uint8).view(-1)
            else:
                # Without importance rows of all widths are but blocks; with it matrices of one
                # shape go together as experts do.
                columns = self._importance(piece, x)
                shape = () if columns is None else (x.shape[1], x.shape[0] // len(columns))
                together.setdefault((kind, x.dtype, *shape), []).append(at)
        for members in together.values():
            pieces = [slab[at] for at in members]
            parts = [x for at in members if (x := values[at]) is not None]
            for at, part in zip(members, self._quantize(pieces, parts), strict=True):
                blocks[at] = part
        return [blocks[at] for at in range(len(slab))]

    def _importance(self, piece: Piece, x: Tensor) -> Tensor | None:
        """float32 `[experts, width]` where the piece's values `x` are; None without."""
        columns = self._columns[x.device][piece.output]
        if columns is None:
            return None
        return columns[experts_of(piece, self.outputs[piece.output], len(columns))]

    def _quantize(self, pieces: Sequence[Piece], parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """`parts`, the values of `pieces`, as blocks of their one type, uint8, in one launch."""
        kind = self.outputs[pieces[0].output].spec.type
        row = kernels.by_name(kind)
        found = [c for c in map(self._importance, pieces, parts) if c is not None]
        if found:
            columns = torch.cat(found) if len(found) > 1 else found[0]
            width = columns.shape[1]
            matrices = [part.view(len(c), -1, width) for part, c in zip(parts, found, strict=True)]
            values = torch.cat(matrices) if len(parts) > 1 else matrices[0]
            backend = self._backends.get(f"{kind} weighted")
            blocks = kernels.quantize(values, kind, columns, backend=backend).view(-1)
        elif len(parts) == 1:
            blocks = kernels.quantize(parts[0], kind, backend=self._backends.get(kind)).view(-1)
        else:
            flat = torch.cat([part.reshape(-1) for part in parts]).view(-1, row.block)
            blocks = kernels.quantize(flat, kind, backend=self._backends.get(kind)).view(-1)
        return torch.split(blocks, [x.numel() // row.block * row.nbytes for x in parts])

    def _result(
        self, piece: Piece, rows: DeviceRows | None, blocks: Tensor, turn: kernels.Turn
    ) -> _Result:
        output = self.outputs[piece.output]
        taken = blocks if passes(self.source, output) else turn.take(blocks)
        if rows is None or not rows.values.numel():
            return _Result(taken, None)
        x, result = rows.values, _Result(taken, rows.extremes)
        if output.spec.type != output.source_type:
            step = max(x.numel() // SAMPLE, 1)
            some = x[::step].to(torch.float32)
            again = kernels.dequantize(blocks.view(x.shape[0], -1)[::step], output.spec.type)
            error = (some - again).square().sum(dtype=torch.float64)
            square = some.square().sum(dtype=torch.float64)
            result.sums, result.compared = torch.stack((error, square)), some.numel()
        return result

    def _change(
        self,
        piece: Piece,
        rows: DeviceRows,
        blocks: Tensor,
        result: _Result,
        turn: kernels.Turn,
    ) -> None:
        """Add to `result` the sums of `Change` over some rows of a piece."""
        kind = self.outputs[piece.output].spec.type
        x, base = rows.values, rows.before
        step = max(x.numel() // SAMPLE, 1)
        columns = self._importance(piece, x)
        # Rows of one matrix: of experts each has an importance of its own.
        count = len(x) if columns is None else len(x) // len(columns)
        if turn.at_once and torch.equal(x[:count:step], base[:count:step].to(x.dtype)):
            step = 1  # a few rows have changed, those of tokens: all are looked at
        before = base[:count:step].to(torch.float32)
        delta = x[:count:step].to(torch.float32) - before
        weights = None if columns is None else columns[0]
        moved = delta  # float64 keeps all of it
        if kind in kernels.QUANTS:
            was = kernels.dequantize(kernels.quantize(before, kind, weights), kind)
            moved = kernels.dequantize(blocks.view(len(x), -1)[:count:step], kind) - was
        pairs = ((before, before), (delta, delta), (moved, moved), (moved, delta))
        sums = [(a.double() * b.double()).sum() for a, b in pairs]
        result.changed, result.looked_at = torch.stack(sums), delta.numel()


def tensor_conversion(
    source: Source, outputs: Sequence[PlannedOutput], device: Device
) -> Conversion:
    """The engine for `device`, which may name several, `cuda:0,cuda:1`."""
    return Conversion(source, outputs, kernels.device_list(device))


def _indexed(place: torch.device) -> torch.device:
    """`place` as a tensor there names it: a GPU by its number."""
    return torch.empty(0, device=place).device


def _columns(outputs: Sequence[PlannedOutput], place: torch.device) -> list[Tensor | None]:
    """float32 `[experts, width]` on `place` for each output: its importance; None without."""
    given = [o.importance for o in outputs if o.importance is not None]
    if not given:
        return [None] * len(outputs)
    if place.type == "cpu":
        parts = iter([torch.from_numpy(each) for each in given])
    else:
        # One copy for all, which has come when this returns, whatever stream it is read in.
        flat = torch.from_numpy(np.concatenate([each.reshape(-1) for each in given])).to(place)
        parts = iter(torch.split(flat, [each.size for each in given]))
    return [
        None if o.importance is None else next(parts).reshape(-1, o.spec.ne[0]) for o in outputs
    ]


def _backends(outputs: Sequence[PlannedOutput], place: torch.device) -> dict[str, str]:
    """The kernels' backend for each type, by the work that there is in total."""
    weights: Counter[tuple[str, bool]] = Counter()
    for output in outputs:
        if output.spec.type != output.source_type and output.spec.type in kernels.QUANTS:
            weights[output.spec.type, output.importance is not None] += output.spec.n_elements
    planned: dict[str, str] = {}
    for (name, weighted), count in weights.items():
        key = f"{name} weighted" if weighted else name
        planned[key] = kernels.plan_backend(name, count, place, weighted)
    return planned
