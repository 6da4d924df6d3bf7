"""Slabs computed on the CPU with numpy and programs that earlier runs have left: without torch.

Importing torch takes as long as many a model takes to quantise. Where everything that a plan needs
is kept, this engine does without; bytes, checks and sums are those of `conversion`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukit.conversion.engine import SAMPLE, Buffer, Bytes, Engine
from gpukit.conversion.slabs import Piece, Slab, stored_bytes
from gpukit.planning.plan import PlannedOutput
from gpukit.sources.base import Source
from gpukit_kernels import plain, type_facts
from gpukit_kernels.program import Program, kept, program_name

# Of each float type the arrays that hold its values, and the values that programs for it take.
FLOATS: dict[str, tuple[np.dtype[Any], str]] = {
    "F32": (np.dtype(np.float32), "float32"),
    "F16": (np.dtype(np.float16), "float32"),
    "BF16": (np.dtype(np.uint16), "bfloat16"),
}


def plain_conversion(
    source: Source, outputs: Sequence[PlannedOutput], device: str
) -> "PlainConversion | None":
    """The engine for a plan from a GGUF of floats on the CPU; None where it cannot do all, or where
    torch is there already."""
    if "torch" in sys.modules or not plain.is_cpu(device):
        return None
    programs: dict[str, Program] = {}
    for output in outputs:
        if output.source_type not in FLOATS:
            return None
        if source.passes(output.index, output.spec.type):
            continue
        name = _program_name(output)
        program = kept(name)
        if program is None:
            return None
        programs[name] = program
    return PlainConversion(source, outputs, programs)


def _program_name(output: PlannedOutput) -> str:
    dtype = FLOATS[output.source_type][1]
    return program_name(output.spec.type, dtype, output.importance is not None)


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


class PlainConversion(Engine[PlainLane, _Done]):
    """The engine of `programs`, by their names."""

    def __init__(
        self,
        source: Source,
        outputs: Sequence[PlannedOutput],
        programs: Mapping[str, Program],
        threads: int | None = None,
    ) -> None:
        super().__init__(source, outputs)
        threads = threads or plain.cpu_threads()
        self.lanes = [PlainLane()] * min(threads, plain.CPU_LANES)
        self._threads = max(threads // len(self.lanes), 1)
        self._programs = programs

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
        values = stored.view(FLOATS[output.source_type][0]).reshape(piece.rows, ne[0] if ne else 1)
        moved = self.passes(piece)
        blocks = stored if moved else self._quantized(piece, values)
        if values.size:
            self.check(piece, plain.largest(values), blocks, data)
            if not moved:
                self._compare(piece, values, blocks)
        return blocks

    def _quantized(self, piece: Piece, values: plain.Array) -> Bytes:
        output = self.outputs[piece.output]
        facts, program = type_facts()[output.spec.type], self._programs[_program_name(output)]
        columns = self.columns(piece, values.shape[1])
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
        self.lost(piece, error, square, some.size)
