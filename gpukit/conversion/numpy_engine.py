"""Slabs computed on the CPU with numpy and programs that earlier runs have left: without torch.

Importing torch takes as long as many a model takes to quantise. Where everything that a plan needs
is kept, this engine does without; bytes, checks and sums are those of `torch_engine`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from gpukit.conversion.arrays import Rows, narrows, why_not
from gpukit.conversion.audit import SAMPLE, Audit, Bytes
from gpukit.conversion.engine import Buffer
from gpukit.conversion.slabs import Piece, Slab, importance_of, passes, readings, stored_bytes
from gpukit.formats.floats import FLOATS
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source
from gpukit_kernels import type_facts
from gpukit_kernels.cpu import plain
from gpukit_kernels.cpu.merger import Floats, Merger, narrowed
from gpukit_kernels.cpu.program import MERGE, Program, kept, kept_library, program_name
from gpukit_kernels.devices import Device


def plain_conversion(
    source: Source, outputs: Sequence[PlannedOutput], device: Device
) -> "PlainConversion | str":
    """The engine for a plan from floats on the CPU, or why it cannot do all of it."""
    if not plain.is_cpu(device):
        return f"only device cpu can be used, not {device}"
    if source.only_torch is not None:
        return source.only_torch
    programs: dict[str, Program] = {}
    merges = False
    for output in outputs:
        moved = passes(source, output)
        if moved and output.source_type not in type_facts():
            continue
        parts = list(source.made_of(output.index, 0, output.spec.rows))
        tensor = source.tensors[output.index]
        for part in parts:
            if why := why_not(part, tensor.row_group):
                return f"{output.spec.name} {why}"
        if moved:
            continue
        kind, line = output.spec.type, len(tensor.ne) < 2
        merges |= any(narrows(part, kind if kind in FLOATS else "F32", line) for part in parts)
        if kind in FLOATS:
            if kind not in type_facts():
                return f"{output.spec.name} cannot become {kind}"
            continue
        name = _program_name(output)
        program = kept(name)
        if program is None:
            return f"there is no program for {name} yet"
        programs[name] = program
    merger = kept_library(MERGE, Merger) if merges else None
    if merges and merger is None:
        return "there is no program for merging yet"
    return PlainConversion(source, outputs, programs, merger=merger)


def _program_name(output: PlannedOutput) -> str:
    return program_name(output.spec.type, output.importance is not None)


@dataclass(frozen=True)
class PlainLane:
    """A thread, which computes at once."""

    depth: int = 0


@dataclass(frozen=True)
class _Done:
    """A slab's stored bytes, and of each piece its own."""

    slab: Slab
    data: Bytes
    blocks: list[Bytes]


class PlainConversion:
    """The engine of `programs`, by their names, and of `merger` for deltas and rounding."""

    def __init__(
        self,
        source: Source,
        outputs: Sequence[PlannedOutput],
        programs: Mapping[str, Program],
        threads: int | None = None,
        merger: Merger | None = None,
    ) -> None:
        self.source = source
        self.outputs = outputs
        self._audit = Audit(source, outputs)
        threads = threads or plain.cpu_threads()
        self.lanes = [PlainLane()] * min(threads, plain.CPU_LANES)
        self._threads = max(threads // len(self.lanes), 1)
        self._programs, self._merger = programs, merger

    @property
    def audit(self) -> Audit:
        return self._audit

    def fidelity(self) -> tuple[Fidelity, ...]:
        return self._audit.fidelity()

    def changes(self) -> tuple[Change, ...]:
        return self._audit.changes()

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def buffer(self, nbytes: int) -> Buffer:
        return Buffer(np.empty(nbytes, dtype=np.uint8).data)

    def begin(self, slab: Slab, buffer: Buffer, lane: PlainLane) -> _Done:  # noqa: ARG002
        data = np.frombuffer(buffer.memory, dtype=np.uint8)[: stored_bytes(slab)]
        blocks: list[Bytes] = []
        for pieces in readings(slab, self.outputs):
            blocks += self._blocks(pieces, data)
        return _Done(slab, data, blocks)

    def end(self, work: _Done) -> list[memoryview]:
        return [blocks.data for blocks in work.blocks]

    def holds(self, slab: Slab) -> bool:  # noqa: ARG002
        return True

    def _blocks(self, pieces: Sequence[Piece], data: Bytes) -> list[Bytes]:
        """The bytes of each of the pieces, which share what is stored, checked."""
        first, wanted = pieces[0], [self.outputs[piece.output] for piece in pieces]
        stored = data[first.begin : first.begin + first.stored]
        moved = [passes(self.source, output) for output in wanted]
        if all(moved) and wanted[0].source_type not in type_facts():
            return [stored] * len(pieces)
        tensor = self.source.tensors[wanted[0].index]
        parts = list(self.source.made_of(wanted[0].index, first.row, first.rows))
        line = len(tensor.ne) < 2
        rows = Rows(parts, stored, tensor.row_group, line, self._merger, self._threads)
        dtypes = [
            FLOATS[output.spec.type] if output.spec.type in FLOATS and not as_is else None
            for output, as_is in zip(wanted, moved, strict=True)
        ]
        made, largest = rows.made(dtypes)
        return [
            self._piece(piece, stored if as_is else None, rows, (made[dtype], largest), data)
            for piece, as_is, dtype in zip(pieces, moved, dtypes, strict=True)
        ]

    def _piece(
        self, piece: Piece, blocks: Bytes | None, rows: Rows, made: tuple[plain.Array, float],
        data: Bytes,
    ) -> Bytes:  # fmt: skip
        """The bytes of a piece, checked; `blocks` where they are there, else they are those of the
        values in `made`, whose largest magnitude stands beside them."""
        (values, largest), output = made, self.outputs[piece.output]
        kind = output.spec.type
        if blocks is None and kind in FLOATS:
            blocks = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        elif blocks is None:
            values = np.ascontiguousarray(values)
            blocks = self._quantized(output, values, self._importance(piece, values.shape[1]))
        if values.size:
            self._audit.finite(piece, largest, blocks, data)
            if kind != output.source_type:
                self._compare(piece, rows, blocks, values.shape)
            if self.source.changes(output.index):
                self._change(piece, rows, blocks, values.shape)
        return blocks

    def _importance(self, piece: Piece, width: int) -> Floats | None:
        return importance_of(piece, self.outputs[piece.output], width)

    def _quantized(
        self, output: PlannedOutput, values: plain.Array, columns: Floats | None
    ) -> Bytes:
        facts, program = type_facts()[output.spec.type], self._programs[_program_name(output)]
        return plain.quantize_rows(values, facts, program, columns, self._threads).reshape(-1)

    def _compare(self, piece: Piece, rows: Rows, blocks: Bytes, shape: tuple[int, ...]) -> None:
        """Add up what some of the rows lost."""
        step = max(shape[0] * shape[1] // SAMPLE, 1)
        some = rows.some(np.arange(0, shape[0], step))
        again = _decoded(blocks.reshape(shape[0], -1)[::step], self.outputs[piece.output].spec.type)
        with np.errstate(all="ignore"):
            error = float(np.square(some - again).sum(dtype=np.float64))
            square = float(np.square(some).sum(dtype=np.float64))
        self._audit.lost(piece, error, square, some.size)

    def _change(self, piece: Piece, rows: Rows, blocks: Bytes, shape: tuple[int, ...]) -> None:
        """Add up what adapters did to some of the rows; as `torch_engine`."""
        output = self.outputs[piece.output]
        columns = self._importance(piece, shape[1])
        step = max(shape[0] * shape[1] // SAMPLE, 1)
        # Rows of one matrix: of experts each has an importance of its own.
        count = shape[0] if columns is None else shape[0] // len(columns)
        picks = np.arange(0, count, step)
        before, x = rows.some(picks, merged=False), rows.some(picks)
        if np.array_equal(before, x):
            picks = np.arange(count)
            before, x = rows.some(picks, merged=False), rows.some(picks)
        kind = output.spec.type
        if kind in FLOATS:
            was = self._rounded(before, kind)
        else:
            one = None if columns is None else columns[:1]
            was = _decoded(self._quantized(output, before, one).reshape(len(before), -1), kind)
        delta = x - before
        moved = _decoded(blocks.reshape(shape[0], -1)[picks], kind) - was
        pairs = ((before, before), (delta, delta), (moved, moved), (moved, delta))
        weight, change, stored, along = (float((a.astype(np.float64) * b).sum()) for a, b in pairs)
        self._audit.changed(piece, Change(weight, change, stored, along, delta.size))

    def _rounded(self, values: Floats, kind: str) -> Floats:
        if kind == "F32":
            return values
        assert self._merger is not None
        return plain.as_float32(narrowed(values, FLOATS[kind], self._merger))


def _decoded(blocks: Bytes, kind: str) -> Floats:
    """float32 `[rows, n]` of `blocks` `[rows, row_bytes]`."""
    if kind in FLOATS:
        return plain.as_float32(np.ascontiguousarray(blocks).view(FLOATS[kind]))
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found: Floats = dequantize(blocks, GGMLQuantizationType[kind])
    return found
