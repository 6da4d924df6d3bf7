"""What happens to a slab between the disk and the disk: values, checks, blocks, the error.

`begin` launches all of it on a device, `end` looks at the results; on a GPU other slabs come
between the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import CheckpointError
from gpukit.recipes.slabs import Piece, Slab, stored_bytes
from gpukit.recipes.source import TORCH_TYPES, Source

if TYPE_CHECKING:
    from gpukit.recipes.planning import PlannedOutput

# Beyond this magnitude a scale may overflow fp16; below it none can.
FP16_MAX = 65504.0
# Searches square sums of importance * x * x * level, over 256 values with levels to 127. Up to this
# importance * x * x the squares are well within float32.
WEIGHTED_MAX = 1e12
# Values of a slab that the CPU decodes again to tell the error, at least; a GPU decodes all.
SAMPLE = 1 << 15


@dataclass
class Fidelity:
    """Sums over values of one tensor: of (x - decoded)^2, of x^2, and how many were compared."""

    error: float = 0.0
    square: float = 0.0
    count: int = 0

    def add(self, other: "Fidelity") -> None:
        self.error += other.error
        self.square += other.square
        self.count += other.count

    @property
    def relative_rms(self) -> float | None:
        """The root mean square of the error over that of the values; None where there are none."""
        if not self.count:
            return None
        return math.sqrt(self.error / self.square) if self.square else 0.0


@dataclass
class _Result:
    """A piece's bytes, the least and largest value, and the sums for its error if any."""

    blocks: Tensor
    extremes: Tensor | None
    sums: Tensor | None = None
    compared: int = 0


@dataclass
class Work:
    """A slab on its way through a device."""

    slab: Slab
    turn: kernels.Turn
    data: Tensor
    results: list[_Result]


class Conversion:
    """Turns slabs of `source` into bytes of `outputs`; `backends` is the kernels' backend by type.

    `CheckpointError` for values that are not finite, before or after.
    """

    def __init__(
        self, source: Source, outputs: "Sequence[PlannedOutput]", backends: dict[str, str]
    ) -> None:
        self._source = source
        self._outputs = outputs
        self._backends = backends
        self._fidelity = [Fidelity() for _ in outputs]
        self._lock = Lock()

    def fidelity(self) -> tuple[Fidelity, ...]:
        """What each output lost; nothing for one that only moved."""
        return tuple(self._fidelity)

    def begin(self, slab: Slab, data: Tensor, turn: kernels.Turn) -> Work:
        """Launch the work on `data`, the slab's stored bytes, uint8 on the host."""
        data = data[: stored_bytes(slab)]
        with turn:
            here = turn.put(data)
            values = [self._values(piece, here) for piece in slab]
            blocks = self._blocks(slab, values, data)
            results = [
                self._result(piece, x, b, turn)
                for piece, x, b in zip(slab, values, blocks, strict=True)
            ]
        return Work(slab, turn, data, results)

    def end(self, work: Work) -> list[Tensor]:
        """uint8 on the host for each piece, checked."""
        work.turn.wait()
        for piece, result in zip(work.slab, work.results, strict=True):
            if result.extremes is not None:
                self._check(piece, result, work.data)
            if result.sums is not None:
                error, square = result.sums.tolist()
                with self._lock:
                    found = Fidelity(error, square, result.compared)
                    self._fidelity[piece.output].add(found)
        return [result.blocks for result in work.results]

    def _passes(self, piece: Piece) -> bool:
        output = self._outputs[piece.output]
        return self._source.passes(output.index, output.spec.type)

    def _values(self, piece: Piece, data: Tensor) -> Tensor | None:
        """The piece's values; None for bytes that pass as they are and that nobody can decode."""
        output = self._outputs[piece.output]
        if self._passes(piece) and output.source_type not in kernels.QUANTS:
            return None
        stored = data[piece.begin : piece.begin + piece.stored]
        return self._source.values(output.index, piece.row, piece.rows, stored)

    def _blocks(self, slab: Slab, values: Sequence[Tensor | None], data: Tensor) -> list[Tensor]:
        """uint8 for each piece on the device, or on the host what passes from there as it is;
        pieces that become one type share a launch."""
        blocks: dict[int, Tensor] = {}
        together: dict[tuple[object, ...], list[int]] = {}
        for at, (piece, x) in enumerate(zip(slab, values, strict=True)):
            kind = self._outputs[piece.output].spec.type
            if x is None or self._passes(piece):
                blocks[at] = data[piece.begin : piece.begin + piece.stored]
            elif TORCH_TYPES.get(kind) is x.dtype:
                blocks[at] = x.contiguous().view(torch.uint8).view(-1)
            else:
                # Without importance rows of all widths are but blocks; with it matrices of one
                # shape go together as experts do.
                columns = self._columns(piece, x)
                shape = () if columns is None else (x.shape[1], x.shape[0] // len(columns))
                together.setdefault((kind, x.dtype, *shape), []).append(at)
        for members in together.values():
            pieces = [slab[at] for at in members]
            parts = [x for at in members if (x := values[at]) is not None]
            for at, part in zip(members, self._quantize(pieces, parts), strict=True):
                blocks[at] = part
        return [blocks[at] for at in range(len(slab))]

    def _columns(self, piece: Piece, x: Tensor) -> Tensor | None:
        """float32 `[matrices, ne0]`: the importance of the piece's columns, of each expert its
        own; None without."""
        output = self._outputs[piece.output]
        if output.importance is None:
            return None
        columns = torch.from_numpy(output.importance).view(-1, x.shape[-1])
        of_one = max(output.spec.rows // len(columns), 1)
        first = piece.row // of_one
        return columns[first : max(first + piece.rows // of_one, first + 1)]

    def _quantize(self, pieces: Sequence[Piece], parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """`parts`, the values of `pieces`, as blocks of their one type, uint8, in one launch."""
        kind = self._outputs[pieces[0].output].spec.type
        row = kernels.by_name(kind)
        found = [c for c in map(self._columns, pieces, parts) if c is not None]
        if found:
            columns = torch.cat(found).to(parts[0].device)
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
        self, piece: Piece, x: Tensor | None, blocks: Tensor, turn: kernels.Turn
    ) -> _Result:
        taken = blocks if self._passes(piece) else turn.take(blocks)
        if x is None or not x.numel():
            return _Result(taken, None)
        output = self._outputs[piece.output]
        result = _Result(taken, turn.take(torch.stack(x.aminmax())))
        if output.spec.type != output.source_type:
            step = max(x.numel() // SAMPLE, 1) if turn.sparing else 1
            some = x[::step].to(torch.float32)
            again = kernels.dequantize(blocks.view(x.shape[0], -1)[::step], output.spec.type)
            error = (some - again).square().sum(dtype=torch.float64)
            square = some.square().sum(dtype=torch.float64)
            result.sums, result.compared = turn.take(torch.stack((error, square))), some.numel()
        return result

    def _check(self, piece: Piece, result: _Result, data: Tensor) -> None:
        assert result.extremes is not None
        low, high = map(float, result.extremes)
        largest = max(-low, high)
        if not largest < float("inf"):
            self._refuse(piece, data)
        output = self._outputs[piece.output]
        kind = output.spec.type
        weight = 0.0 if output.importance is None else float(output.importance.max())
        tame = largest <= FP16_MAX and weight * max(largest, largest**2) <= WEIGHTED_MAX
        if tame or self._passes(piece):
            return
        decoded = kernels.dequantize(result.blocks.view(piece.rows, -1), kind)
        if bool(torch.isfinite(decoded).all()):
            return
        what = f"{self._source.path}: {output.spec.name}: a value of magnitude {largest:g}"
        if largest > FP16_MAX:
            raise CheckpointError(f"{what} overflows {kind}; choose BF16 or F32 for this model")
        raise CheckpointError(
            f"{what} with an importance of up to {weight:g} overflows the search of {kind}; "
            "the importance matrix is damaged, or scale it down"
        )

    def _refuse(self, piece: Piece, data: Tensor) -> NoReturn:
        """Name the first value that is not finite."""
        x = self._values(piece, data)
        assert x is not None
        flat = x.reshape(-1)
        first = int(torch.nonzero(~torch.isfinite(flat))[0])
        row, column = divmod(first, x.shape[-1])
        raise CheckpointError(
            f"{self._source.path}: {self._outputs[piece.output].spec.name}: value "
            f"[{piece.row + row}, {column}] is {float(flat[first])}; "
            "a model with such weights cannot be quantised"
        )
