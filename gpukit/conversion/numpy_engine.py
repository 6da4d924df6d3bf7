"""Slabs computed on the CPU with numpy and programs that earlier runs have left: without torch.

Importing torch takes as long as many a model takes to quantise. Where everything that a plan needs
is kept, this engine does without; bytes, checks and sums are those of `torch_engine`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukit.conversion.audit import SAMPLE, Audit, Bytes
from gpukit.conversion.engine import Buffer
from gpukit.conversion.slabs import Piece, Slab, importance_of, passes, stored_bytes
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source
from gpukit_kernels import type_facts
from gpukit_kernels.cpu import plain
from gpukit_kernels.cpu.program import Program, kept, program_name

# Of each float type the arrays that hold its values.
FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}


def plain_conversion(
    source: Source, outputs: Sequence[PlannedOutput], device: str
) -> "PlainConversion | str":
    """The engine for a plan from a GGUF of floats on the CPU, or why it cannot do all of it."""
    if not plain.is_cpu(device):
        return f"only device cpu can be used, not {device}"
    if source.is_checkpoint:
        return "no checkpoint can be imported"
    if source.merges:
        return "no adapter can be merged"
    programs: dict[str, Program] = {}
    for output in outputs:
        if output.source_type not in FLOATS:
            return f"{output.spec.name} cannot be decoded from {output.source_type}"
        if passes(source, output):
            continue
        name = _program_name(output)
        program = kept(name)
        if program is None:
            return f"there is no program for {name} yet"
        programs[name] = program
    return PlainConversion(source, outputs, programs)


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
    """The engine of `programs`, by their names."""

    def __init__(
        self,
        source: Source,
        outputs: Sequence[PlannedOutput],
        programs: Mapping[str, Program],
        threads: int | None = None,
    ) -> None:
        self.source = source
        self.outputs = outputs
        self._audit = Audit(source, outputs)
        threads = threads or plain.cpu_threads()
        self.lanes = [PlainLane()] * min(threads, plain.CPU_LANES)
        self._threads = max(threads // len(self.lanes), 1)
        self._programs = programs

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
        return _Done(slab, data, [self._piece(piece, data) for piece in slab])

    def end(self, work: _Done) -> list[memoryview]:
        return [blocks.data for blocks in work.blocks]

    def _piece(self, piece: Piece, data: Bytes) -> Bytes:
        """The piece's bytes, checked."""
        output = self.outputs[piece.output]
        stored = data[piece.begin : piece.begin + piece.stored]
        ne = self.source.tensors[output.index].ne
        values = stored.view(FLOATS[output.source_type]).reshape(piece.rows, ne[0] if ne else 1)
        moved = passes(self.source, output)
        blocks = stored if moved else self._quantized(piece, values)
        if values.size:
            self._audit.finite(piece, plain.largest(values), blocks, data)
            if not moved:
                self._compare(piece, values, blocks)
        return blocks

    def _quantized(self, piece: Piece, values: plain.Array) -> Bytes:
        output = self.outputs[piece.output]
        facts, program = type_facts()[output.spec.type], self._programs[_program_name(output)]
        columns = importance_of(piece, output, values.shape[1])
        return plain.quantize_rows(values, facts, program, columns, self._threads).reshape(-1)

    def _compare(self, piece: Piece, values: plain.Array, blocks: Bytes) -> None:
        """Add up what some of the rows lost."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        step = max(values.size // SAMPLE, 1)
        some = plain.as_float32(values[::step])
        kind = GGMLQuantizationType[self.outputs[piece.output].spec.type]
        again = dequantize(blocks.reshape(len(values), -1)[::step], kind)
        with np.errstate(all="ignore"):
            error = float(np.square(some - again).sum(dtype=np.float64))
            square = float(np.square(some).sum(dtype=np.float64))
        self._audit.lost(piece, error, square, some.size)
