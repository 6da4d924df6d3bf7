"""What every tensor would lose as every type that it may become.

The loss is the squared error of what is written, relative to the squares of what it stands for:

    sum over rows and columns of (w - decoded)^2 / the same of w^2

where encoding has had the importance of the columns, if there is some. It is a share, whatever the
scale of a tensor; how much each counts is for `plan_target` to say. Importance, the mean squares of
what comes in, is no weight of the sums: where a column is large for one token of a window alone, as
some are for the first, it would be most of both, and the tensor would seem to lose little although
the other tokens lose as much as ever (docs/measuring.md has the numbers).

Of each matrix some rows are looked at, evenly spread; all types are encoded from one reading of
them. Sums are exact, so that neither threads nor the size of a batch change a result.
"""

from collections.abc import Iterator, Sequence
from math import fsum

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.conversion.audit import with_adapters
from gpukit.errors import CheckpointError
from gpukit.events import Report, Step, ignore
from gpukit.planning.targets import Candidate
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device, device_name

# Rows of a tensor that are looked at, and at least of each of its matrices.
ROWS, ROWS_OF_MATRIX = 512, 8
# Weights in a batch: memory is about 30 bytes for each.
BATCH = 1 << 21
# Digits of a loss that count: devices add up in orders of their own.
DIGITS = 10

Range = tuple[int, int]


def measure(
    source: Source, tensors: Sequence[Candidate], device: Device = "auto", report: Report = ignore
) -> list[list[float]]:
    """For each tensor what it loses as each of its types, 0 for the one that it has.

    `CheckpointError` for values that are not finite, and the errors of the source's reader.
    """
    place = kernels.device(device_name(device).split(",")[0])
    backends = _backends(tensors, place)
    found = []
    with torch.inference_mode():
        for done, tensor in enumerate(tensors):
            report(Step("measuring sensitivity", done, len(tensors), "tensors"))
            found.append(_losses(source, tensor, place, backends))
        report(Step("measuring sensitivity", len(tensors), len(tensors), "tensors"))
    return found


def _losses(
    source: Source, tensor: Candidate, place: torch.device, backends: dict[str, str]
) -> list[float]:
    """The loss of one tensor as each of its types."""
    energies: list[float] = []
    errors: dict[str, list[float]] = {kind: [] for kind in tensor.types}
    for matrix, ranges in _batches(source, tensor):
        x = _values(source, tensor, ranges, place)
        columns = _importance(tensor, matrix, place)
        if not bool(torch.isfinite(x).all()):
            raise CheckpointError(
                f"{source.path}: {tensor.spec.name}: rows {ranges[0][0]} to {sum(ranges[-1])} hold "
                f"values that are not finite{with_adapters(source, tensor.index)}; a model with "
                "such weights cannot be quantised"
            )
        energies += _row_sums(x)
        for kind in tensor.types:
            if kind == tensor.spec.type:
                continue
            weighted = None if columns is None or kind == "F16" else columns
            key = f"{kind} weighted" if weighted is not None else kind
            blocks = kernels.quantize(x, kind, weighted, backend=backends.get(key))
            errors[kind] += _row_sums(kernels.dequantize(blocks, kind).sub_(x))
    energy = fsum(energies)
    return [_share(fsum(errors[kind]), energy) for kind in tensor.types]


def _share(error: float, energy: float) -> float:
    return float(f"{error / energy:.{DIGITS}g}") if energy else 0.0


def _row_sums(x: Tensor) -> list[float]:
    """Of each row of float32 `x` the sum of squares, in float64."""
    found: list[float] = x.double().square_().sum(-1).tolist()
    return found


def _importance(tensor: Candidate, matrix: int, place: torch.device) -> Tensor | None:
    """float32 `[ne0]`: what counts for the columns of one matrix of a tensor."""
    if tensor.importance is None:
        return None
    columns = tensor.importance.reshape(-1, tensor.spec.ne[0])
    return torch.from_numpy(columns[matrix % len(columns)].copy()).to(place)


def _values(
    source: Source, tensor: Candidate, ranges: Sequence[Range], place: torch.device
) -> Tensor:
    """float32 `[rows, ne0]` on `place`: the rows of `ranges`, one after another."""
    return torch.cat([source.float_rows(tensor.index, *part, place) for part in _joined(ranges)])


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """`ranges` with neighbours as one, which is read at once."""
    found: list[Range] = []
    for row, rows in ranges:
        if found and sum(found[-1]) == row:
            found[-1] = found[-1][0], found[-1][1] + rows
        else:
            found.append((row, rows))
    return found


def _batches(source: Source, tensor: Candidate) -> Iterator[tuple[int, list[Range]]]:
    """The number of a matrix and (first row, rows) of those of its rows that are looked at, so many
    at a time as a batch takes."""
    width, group = tensor.spec.ne[0], source.tensors[tensor.index].row_group
    matrices = 1 if tensor.importance is None else tensor.importance.size // width
    of_one = tensor.spec.rows // matrices
    wanted = max(ROWS // matrices, ROWS_OF_MATRIX)
    most = max(BATCH // width, 1)
    for matrix in range(matrices):
        batch: list[Range] = []
        for row, rows in spread(of_one, group, wanted):
            if batch and sum(n for _, n in batch) + rows > most:
                yield matrix, batch
                batch = []
            batch.append((matrix * of_one + row, rows))
        if batch:
            yield matrix, batch


def spread(rows: int, group: int, wanted: int) -> list[Range]:
    """(first row, rows) of about `wanted` of `rows` rows, evenly spread, in whole groups."""
    groups = -(-rows // group)
    taken = min(-(-wanted // group), groups)
    starts = [number * groups // taken * group for number in range(taken)]
    return [(start, min(group, rows - start)) for start in starts]


def _backends(tensors: Sequence[Candidate], place: torch.device) -> dict[str, str]:
    """The kernels' backend for each type, by the work that there is in total."""
    weights: dict[tuple[str, bool], int] = {}
    for tensor in tensors:
        looked_at = min(tensor.spec.rows, ROWS) * tensor.spec.ne[0]
        for kind in tensor.types:
            key = kind, tensor.importance is not None
            weights[key] = weights.get(key, 0) + looked_at
    return {
        f"{kind} weighted" if weighted else kind: kernels.plan_backend(kind, n, place, weighted)
        for (kind, weighted), n in weights.items()
        if kind not in ("F16", "BF16", "F32")
    }
