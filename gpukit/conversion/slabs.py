"""Cuts the tensors of a plan into slabs: what is read, computed and written at a time.

A slab is part of a large tensor or several small ones, in the order of the file, so that a thin
model takes no more steps than a thick one of its size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpukit.formats.imatrix import Floats
from gpukit.planning.plan import PlannedOutput
from gpukit.sources.base import Source


@dataclass(frozen=True)
class Piece:
    """Rows of output tensor `output` from `row` on; their `stored` bytes lie at `begin` in the
    slab's buffer, the result goes to position `at` of the tensor's data."""

    output: int
    row: int
    rows: int
    begin: int
    stored: int
    at: int


Slab = tuple[Piece, ...]

# Pieces begin where a value of any dtype may, also in a vector register.
ALIGNMENT = 64


def stored_bytes(slab: Slab) -> int:
    """Bytes of a slab's buffer."""
    return slab[-1].begin + slab[-1].stored if slab else 0


def passes(source: Source, output: PlannedOutput) -> bool:
    """Whether stored bytes are the result."""
    return source.passes(output.index, output.spec.type)


def importance_of(piece: Piece, output: PlannedOutput, width: int) -> Floats | None:
    """float32 `[matrices, width]`: the importance of the columns of a piece of `output`, of each
    expert its own; None without."""
    if output.importance is None:
        return None
    columns = output.importance.reshape(-1, width)
    return columns[experts_of(piece, output, len(columns))]


def experts_of(piece: Piece, output: PlannedOutput, experts: int) -> slice:
    """Which of the `experts` that `output` consists of a piece of it belongs to."""
    of_one = max(output.spec.rows // experts, 1)
    first = piece.row // of_one
    return slice(first, max(first + piece.rows // of_one, first + 1))


def cut(source: Source, outputs: Sequence[PlannedOutput], weights: int) -> Iterator[Slab]:
    """Slabs of about `weights` weights at most, in order; a row is never cut."""
    pieces: list[Piece] = []
    filled = begin = 0
    for number, output in enumerate(outputs):
        tensor = source.tensors[output.index]
        width = max(tensor.ne[0] if tensor.ne else 1, 1)
        for row, rows in _row_ranges(source, output, weights):
            if pieces and filled + rows * width > weights:
                yield tuple(pieces)
                pieces, filled, begin = [], 0, 0
            stored = source.stored_bytes(output.index, rows, row)
            pieces.append(Piece(number, row, rows, begin, stored, row * output.spec.row_bytes))
            filled += rows * width
            begin += -(-stored // ALIGNMENT) * ALIGNMENT
    if pieces:
        yield tuple(pieces)


def _row_ranges(source: Source, output: PlannedOutput, weights: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of the pieces of one tensor.

    Where experts have importance of their own, a piece holds whole experts or part of one.
    """
    tensor = source.tensors[output.index]
    width, group = max(tensor.ne[0] if tensor.ne else 1, 1), tensor.row_group
    step = max(weights // width // group, 1) * group
    block = max(tensor.rows, 1)
    if output.importance is not None and (experts := output.importance.size // width) > 1:
        of_one = tensor.rows // experts
        block = max(step // of_one, 1) * of_one
    for start in range(0, tensor.rows, block):
        end = min(start + block, tensor.rows)
        for row in range(start, end, step):
            yield row, min(step, end - row)
