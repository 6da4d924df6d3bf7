"""Read, compute and write overlapped: slabs of rows pass from the disk through the kernels back.

A few readers fetch the next slabs, one thread for each device computes (on a GPU with several
slabs under way: one is copied in, one computed, one copied out), one writer puts the results in
their places. The number of slabs under way and their size bound the memory, whatever the size of
the model.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError
from gpukit.events import Report, Step
from gpukit.recipes.conversion import Conversion, Fidelity, Work
from gpukit.recipes.slabs import Slab, cut, stored_bytes
from gpukit.recipes.source import Source

if TYPE_CHECKING:
    from gpukit.recipes.planning import PlannedOutput

# Weights in a slab: 16 MiB of BF16, enough to keep a disk and the kernels busy at a time.
SLAB_WEIGHTS = 1 << 23
# Slabs that are read ahead, and results that wait for the disk.
READ_AHEAD = 3
WRITE_BEHIND = 3
READERS = 2
# Bytes of buffers a weight of a slab can take, reading and writing, all slabs under way counted.
BYTES_PER_WEIGHT = 4 * (READ_AHEAD + 1) + 4 * (WRITE_BEHIND + 1) + 8


# Told of each slab that is through.
Advance = Callable[[Slab], None]


class Writer(Protocol):
    """Where results go: a file or the parts of one."""

    def write(self, index: int, data: memoryview, start: int) -> None: ...


@dataclass(frozen=True)
class Passed:
    """What went through: bytes read, and how much each tensor lost."""

    read_bytes: int
    fidelity: tuple[Fidelity, ...]


def run_pipeline(
    source: Source,
    outputs: "Sequence[PlannedOutput]",
    writer: Writer,
    title: str,
    device: str,
    budget: int,
    report: Report,
) -> Passed:
    """Pass every tensor through. `device` may name several, `cuda:0,cuda:1`: slabs go to the
    one that is free."""
    try:
        places = kernels.device_list(device)
    except kernels.QuantError as error:
        raise ArgumentError(str(error)) from None
    return pass_through(source, outputs, writer, title, places, budget, report)


def pass_through(
    source: Source,
    outputs: "Sequence[PlannedOutput]",
    writer: Writer,
    title: str,
    places: Sequence[torch.device],
    budget: int,
    report: Report,
) -> Passed:
    """`run_pipeline` on the torch devices `places`."""
    kernels.keep_memory()
    lanes = [kernels.Lane(place) for place in places]
    weights = min(SLAB_WEIGHTS, max(budget // BYTES_PER_WEIGHT, 1))
    slabs = list(cut(source, outputs, weights))
    total = sum(piece.stored for slab in slabs for piece in slab)
    conversion = Conversion(source, outputs, _backends(outputs, places[0]))
    done, lock = 0, Lock()
    report(Step(title, 0, total))

    def advance(slab: Slab) -> None:
        nonlocal done
        with lock:
            done += sum(piece.stored for piece in slab)
            report(Step(title, done, total))

    under_way = sum(lane.depth + 1 for lane in lanes)
    pinned = places[0].type != "cpu"
    with _Stages(source, outputs, slabs, writer, under_way, pinned) as stages:
        workers = [_Worker(lane, stages, conversion, advance) for lane in lanes]
        _run_all(workers)
    return Passed(total, conversion.fidelity())


def _backends(outputs: "Sequence[PlannedOutput]", place: torch.device) -> dict[str, str]:
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


class _Worker:
    """Computes on one device until no slab is left."""

    def __init__(
        self, lane: kernels.Lane, stages: "_Stages", conversion: Conversion, advance: Advance
    ) -> None:
        self._lane = lane
        self._stages = stages
        self._conversion = conversion
        self._advance = advance
        self._under_way: deque[tuple[Work, Tensor]] = deque()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with torch.inference_mode():
                while (loaded := self._stages.take()) is not None:
                    slab, buffer = loaded
                    work = self._conversion.begin(slab, buffer, self._lane.turn())
                    self._under_way.append((work, buffer))
                    if len(self._under_way) > self._lane.depth:
                        self._end(*self._under_way.popleft())
                while self._under_way:
                    self._end(*self._under_way.popleft())
        except BaseException as error:  # raised again by `_run_all`
            self.failure = error
            self._stages.stop()

    def _end(self, work: Work, buffer: Tensor) -> None:
        self._stages.write(work.slab, self._conversion.end(work), buffer)
        self._advance(work.slab)


def _run_all(workers: Sequence[_Worker]) -> None:
    """Run the first worker here and each other on a thread; raise what the first to fail raised."""
    threads = [Thread(target=worker.run, name="gpukit-device") for worker in workers[1:]]
    for thread in threads:
        thread.start()
    workers[0].run()
    for thread in threads:
        thread.join()
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure


class _Stages:
    """The threads around the computation: readers ahead of it, one writer behind it."""

    def __init__(
        self,
        source: Source,
        outputs: "Sequence[PlannedOutput]",
        slabs: Sequence[Slab],
        writer: Writer,
        under_way: int,
        pinned: bool,
    ) -> None:
        self._source = source
        self._outputs = outputs
        self._slabs = deque(slabs)
        self._ahead = iter(slabs)
        self._target = writer
        self._size = max(map(stored_bytes, slabs), default=0)
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        # More than are read ahead: those in hand, and those that wait for the disk as they were
        # read (tensors that only move).
        for _ in range(min(READ_AHEAD + under_way + WRITE_BEHIND, len(slabs))):
            self._free.put(torch.empty(self._size, dtype=torch.uint8, pin_memory=pinned))
        self._readers = ThreadPoolExecutor(READERS, "gpukit-read")
        self._writer = ThreadPoolExecutor(1, "gpukit-write")
        self._reading: deque[Future[Tensor]] = deque()
        self._writing: deque[Future[None]] = deque()
        self._lock = Lock()

    def __enter__(self) -> "_Stages":
        return self

    def take(self) -> tuple[Slab, Tensor] | None:
        """The next slab and the buffer with its bytes, which `write` takes back; None at the
        end."""
        with self._lock:
            if not self._slabs:
                return None
            slab = self._slabs.popleft()
            while (
                len(self._reading) <= READ_AHEAD
                and (following := next(self._ahead, None)) is not None
            ):
                self._reading.append(self._readers.submit(self._read, following))
            reading = self._reading.popleft()
        return slab, reading.result()

    def stop(self) -> None:
        """Let nobody take a slab any more."""
        with self._lock:
            self._slabs.clear()

    def _read(self, slab: Slab) -> Tensor:
        buffer = self._free.get()
        view = buffer.numpy().data
        for piece in slab:
            index = self._outputs[piece.output].index
            self._source.read(index, piece.row, view[piece.begin : piece.begin + piece.stored])
        return buffer

    def write(self, slab: Slab, results: Sequence[Tensor], buffer: Tensor) -> None:
        """Hand results, uint8 on the host, to the writer; waits when too many are on the way."""
        with self._lock:
            self._writing.append(self._writer.submit(self._write, slab, results, buffer))
            late = None
            if len(self._writing) > WRITE_BEHIND:
                late = self._writing.popleft()
        if late is not None:
            late.result()

    def _write(self, slab: Slab, results: Sequence[Tensor], buffer: Tensor) -> None:
        for piece, blocks in zip(slab, results, strict=True):
            self._target.write(piece.output, blocks.numpy().data, piece.at)
        self._free.put(buffer)

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            while self._writing:
                self._writing.popleft().result()
        else:
            # A reader may wait for a buffer that nobody will give back any more.
            for _ in range(READERS):
                self._free.put(torch.empty(self._size, dtype=torch.uint8))
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
