"""Read, compute and write overlapped: slabs of rows pass from the disk through the kernels back.

One thread asks a few readers for the next slabs, quantises the slab in hand and gives the result
to one writer. Everything arrives there in file order. The number of slabs under way and their
size bound the memory, whatever the size of the model.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.events import Report, Step
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.recipes.source import TORCH_TYPES, Source, slab_rows

if TYPE_CHECKING:
    from gpukit.recipes.quantize import PlannedOutput

# Weights in a slab: 16 MiB of BF16, enough to keep a disk and the kernels busy at a time.
SLAB_WEIGHTS = 1 << 23
# Slabs that are read ahead, and results that wait for the disk.
READ_AHEAD = 3
WRITE_BEHIND = 3
READERS = 2
# Bytes of buffers a weight of a slab can take, reading and writing, all slabs under way counted.
BYTES_PER_WEIGHT = 4 * (READ_AHEAD + 1) + 4 * (WRITE_BEHIND + 1) + 8

# Beyond this magnitude a scale may overflow fp16; below it none can.
FP16_MAX = 65504.0


@dataclass(frozen=True)
class Slab:
    """Some rows of one output tensor; `at` is where its bytes begin in the tensor."""

    output: int
    row: int
    rows: int
    stored: int
    at: int


def run_pipeline(
    source: Source,
    outputs: "Sequence[PlannedOutput]",
    writer: GGUFWriter,
    title: str,
    device: str,
    budget: int,
    report: Report,
) -> int:
    """Pass every tensor through; the bytes that were read."""
    try:
        place = kernels.device(device)
    except kernels.QuantError as error:
        raise ArgumentError(str(error)) from None
    weights = min(SLAB_WEIGHTS, max(budget // BYTES_PER_WEIGHT, 1))
    slabs = list(_slabs(source, outputs, weights))
    total = sum(slab.stored for slab in slabs)
    backends = _backends(outputs, place)
    done = 0
    report(Step(title, 0, total))
    with _Stages(source, outputs, slabs, pinned=place.type != "cpu") as stages:
        for slab, data in stages.loaded():
            output = outputs[slab.output]
            values = source.values(output.index, slab.row, slab.rows, data)
            blocks = _convert(source, output, slab, values, backends, place)
            stages.write(writer, slab, blocks)
            done += slab.stored
            report(Step(title, done, total))
    return total


def _slabs(source: Source, outputs: "Sequence[PlannedOutput]", weights: int) -> Iterator[Slab]:
    for number, output in enumerate(outputs):
        tensor = source.tensors[output.index]
        step = slab_rows(tensor, weights)
        for row in range(0, tensor.rows, step):
            rows = min(step, tensor.rows - row)
            stored = source.stored_bytes(output.index, rows)
            yield Slab(number, row, rows, stored, row * output.spec.row_bytes)


def _backends(outputs: "Sequence[PlannedOutput]", place: torch.device) -> dict[str, str]:
    """The kernels' backend for each type, by the work that there is in total."""
    weights: Counter[str] = Counter()
    for output in outputs:
        if output.spec.type != output.source_type:
            weights[output.spec.type] += output.spec.n_elements
    return {name: kernels.plan_backend(name, count, place) for name, count in weights.items()}


class _Stages:
    """The threads around the computation: readers ahead of it, one writer behind it."""

    def __init__(
        self,
        source: Source,
        outputs: "Sequence[PlannedOutput]",
        slabs: Sequence[Slab],
        pinned: bool,
    ) -> None:
        self._source = source
        self._outputs = outputs
        self._slabs = slabs
        size = max((slab.stored for slab in slabs), default=0)
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        # One more than is read ahead for the slab in hand, and those that wait for the disk as
        # they were read (tensors that only move).
        for _ in range(min(READ_AHEAD + 1 + WRITE_BEHIND, len(slabs))):
            self._free.put(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))
        self._readers = ThreadPoolExecutor(READERS, "gpukit-read")
        self._writer = ThreadPoolExecutor(1, "gpukit-write")
        self._writing: deque[Future[None]] = deque()
        self._held: Tensor | None = None

    def __enter__(self) -> "_Stages":
        return self

    def loaded(self) -> Iterator[tuple[Slab, Tensor]]:
        """Each slab with its bytes, in order; the buffer is taken back when `write` is through."""
        reading: deque[Future[Tensor]] = deque()
        ahead = iter(self._slabs)
        for slab in self._slabs:
            while len(reading) <= READ_AHEAD and (following := next(ahead, None)) is not None:
                reading.append(self._readers.submit(self._read, following))
            buffer = reading.popleft().result()
            self._held = buffer
            yield slab, buffer[: slab.stored]

    def _read(self, slab: Slab) -> Tensor:
        buffer = self._free.get()
        view = buffer.numpy().data[: slab.stored]
        self._source.read(self._outputs[slab.output].index, slab.row, view)
        return buffer

    def write(self, writer: GGUFWriter, slab: Slab, blocks: Tensor) -> None:
        """Hand a result to the writer; waits when too many are on the way."""
        buffer, self._held = self._held, None
        self._writing.append(self._writer.submit(self._write, writer, slab, blocks, buffer))
        while len(self._writing) > WRITE_BEHIND:
            self._writing.popleft().result()

    def _write(self, writer: GGUFWriter, slab: Slab, blocks: Tensor, buffer: Tensor | None) -> None:
        writer.write(slab.output, blocks.numpy().data, slab.at)
        if buffer is not None:
            self._free.put(buffer)

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            while self._writing:
                self._writing.popleft().result()
        else:
            # A reader may wait for a buffer that nobody will give back any more.
            for _ in range(READERS):
                self._free.put(torch.empty(self._largest(), dtype=torch.uint8))
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)

    def _largest(self) -> int:
        return max((slab.stored for slab in self._slabs), default=0)


def _convert(
    source: Source,
    output: "PlannedOutput",
    slab: Slab,
    values: Tensor,
    backends: dict[str, str],
    place: torch.device,
) -> Tensor:
    """uint8 on the host: the slab as it goes into the file."""
    kind = output.spec.type
    values = values.to(place, non_blocking=True)
    largest = _largest_magnitude(source, output, slab, values)
    if TORCH_TYPES.get(kind) is values.dtype:
        return values.contiguous().view(torch.uint8).view(-1).cpu()
    blocks = kernels.quantize(values, kind, backend=backends.get(kind))
    if largest > FP16_MAX:
        decoded = kernels.dequantize(blocks, kind)
        if not bool(torch.isfinite(decoded).all()):
            raise CheckpointError(
                f"{source.path}: {output.spec.name}: a value of magnitude {largest:g} overflows "
                f"{kind}; choose BF16 or F32 for this model"
            )
    return blocks.view(-1).cpu()


def _largest_magnitude(
    source: Source, output: "PlannedOutput", slab: Slab, values: Tensor
) -> float:
    """The largest |value|; `CheckpointError` names the first value that is not finite."""
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    largest = max(-float(low), float(high))
    if largest < float("inf"):
        return largest
    flat = values.reshape(-1)
    first = int(torch.nonzero(~torch.isfinite(flat))[0])
    row, column = divmod(first, values.shape[-1])
    raise CheckpointError(
        f"{source.path}: {output.spec.name}: value [{slab.row + row}, {column}] is "
        f"{float(flat[first])}; a model with such weights cannot be quantised"
    )
