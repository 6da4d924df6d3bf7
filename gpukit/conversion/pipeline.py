"""Read, compute and write overlapped: slabs of rows pass from the disk through the kernels back.

A few readers fetch the next slabs. A thread for each GPU computes, with several slabs under way
(one is copied in, one computed, one copied out), or a few threads for the CPU. One writer puts the
results in their places, in the order of the file. The number of slabs under way and their size
bound the memory, whatever the size of the model.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import Any, Protocol

import gpukit_kernels as kernels
from gpukit.conversion.choice import choose_engine
from gpukit.conversion.engine import Buffer, Engine, Wish
from gpukit.conversion.slabs import Slab, cut, stored_bytes
from gpukit.events import Report, Step
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source

# Weights in a slab: 8 MiB of BF16 keep a disk and a core busy at a time, and more only takes
# memory; a GPU, whose every launch costs something, gets twice as many.
SLAB_WEIGHTS, GPU_SLAB_WEIGHTS = 1 << 22, 1 << 23
# Slabs that are read ahead, and results that wait for the disk.
READ_AHEAD = 3
WRITE_BEHIND = 3
READERS = 2
# Bytes that a weight of a slab can take, read, computed and written.
BYTES_PER_WEIGHT = 4 + 8 + 4


# Told of each slab that is through.
Advance = Callable[[Slab], None]


class Writer(Protocol):
    """Where results go: a file or the parts of one."""

    def write(self, index: int, data: memoryview, start: int) -> None: ...


@dataclass(frozen=True)
class Passed:
    """What went through: bytes read, how much each tensor lost, and what adapters did to it."""

    read_bytes: int
    fidelity: tuple[Fidelity, ...]
    changes: tuple[Change, ...]


def run_pipeline(
    source: Source,
    outputs: Sequence[PlannedOutput],
    writer: Writer,
    title: str,
    device: str,
    budget: int,
    report: Report,
    wish: Wish = "auto",
) -> Passed:
    """Pass every tensor through. `device` may name several, `cuda:0,cuda:1`: slabs go to the
    one that is free."""
    engine = choose_engine(source, outputs, device, wish)
    return pass_through(engine, writer, title, budget, report)


def pass_through(
    engine: Engine[Any, Any], writer: Writer, title: str, budget: int, report: Report
) -> Passed:
    """`run_pipeline` with `engine`."""
    kernels.keep_memory()
    under_way = sum(lane.depth + 1 for lane in engine.lanes)
    slabs_in_memory = READ_AHEAD + WRITE_BEHIND + under_way
    most = GPU_SLAB_WEIGHTS if any(lane.depth for lane in engine.lanes) else SLAB_WEIGHTS
    weights = min(most, max(budget // (BYTES_PER_WEIGHT * slabs_in_memory), 1))
    slabs = list(cut(engine.source, engine.outputs, weights))
    total = sum(piece.stored for slab in slabs for piece in slab)
    done, lock = 0, Lock()
    report(Step(title, 0, total))

    def advance(slab: Slab) -> None:
        nonlocal done
        with lock:
            done += sum(piece.stored for piece in slab)
            report(Step(title, done, total))

    with _Stages(engine, slabs, writer, under_way) as stages, engine.running():
        _run_all([_Worker(lane, stages, engine, advance) for lane in engine.lanes])
    return Passed(total, engine.fidelity(), engine.changes())


class _Worker:
    """Computes in one lane until no slab is left."""

    def __init__(
        self, lane: Any, stages: "_Stages", engine: Engine[Any, Any], advance: Advance
    ) -> None:
        self._lane = lane
        self._stages = stages
        self._engine = engine
        self._advance = advance
        self._under_way: deque[tuple[int, Slab, Any, Buffer]] = deque()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._engine.working():
                while True:
                    # Others may wait for what is under way here: it must not wait for them.
                    loaded = self._stages.take(wait=not self._under_way)
                    if loaded is not None:
                        number, slab, buffer = loaded
                        work = self._engine.begin(slab, buffer, self._lane)
                        self._under_way.append((number, slab, work, buffer))
                        if len(self._under_way) <= self._lane.depth:
                            continue
                    if not self._under_way:
                        return
                    self._end(*self._under_way.popleft())
        except BaseException as error:  # raised again by `_run_all`
            self.failure = error
            self._stages.stop()

    def _end(self, number: int, slab: Slab, work: Any, buffer: Buffer) -> None:
        self._stages.write(number, slab, self._engine.end(work), buffer)
        self._advance(slab)


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
        self, engine: Engine[Any, Any], slabs: Sequence[Slab], writer: Writer, under_way: int
    ) -> None:
        self._source = engine.source
        self._outputs = engine.outputs
        self._slabs = deque(enumerate(slabs))
        self._ahead = deque(enumerate(slabs))
        self._target = writer
        self._size = max(map(stored_bytes, slabs), default=0)
        self._free: SimpleQueue[Buffer] = SimpleQueue()
        # More than are read ahead: those in hand, and those that wait for the disk as they were
        # read (tensors that only move).
        self._buffers = min(READ_AHEAD + under_way + WRITE_BEHIND, len(slabs))
        for _ in range(self._buffers):
            self._free.put(engine.buffer(self._size))
        self._readers = ThreadPoolExecutor(READERS, "gpukit-read")
        self._writer = ThreadPoolExecutor(1, "gpukit-write")
        self._reading: deque[Future[Buffer]] = deque()
        self._writing: deque[Future[None]] = deque()
        # Results that came before those of an earlier slab, by their numbers.
        self._early: dict[int, tuple[Slab, Sequence[memoryview], Buffer]] = {}
        self._next = self._written = 0
        self._changed = Condition()

    def __enter__(self) -> "_Stages":
        return self

    def take(self, wait: bool) -> tuple[int, Slab, Buffer] | None:
        """The next slab's number, the slab and the buffer with its bytes, which `write` takes back;
        None at the end, and where there is no buffer for it and `wait` is false."""
        with self._changed:
            # Writing goes in order: a slab far ahead must not have the buffer that it waits for.
            while self._slabs and not self._read_ahead() and wait:
                self._changed.wait()
            if not self._slabs or not self._reading:
                return None
            number, slab = self._slabs.popleft()
            reading = self._reading.popleft()
        return number, slab, reading.result()

    def _read_ahead(self) -> bool:
        """Let the next slabs be read for which there are buffers; whether any is on the way."""
        while (
            len(self._reading) <= READ_AHEAD
            and self._ahead
            and self._ahead[0][0] < self._written + self._buffers
        ):
            self._reading.append(self._readers.submit(self._read, self._ahead.popleft()[1]))
        return bool(self._reading)

    def stop(self) -> None:
        """Let nobody take a slab any more."""
        with self._changed:
            self._slabs.clear()
            self._changed.notify_all()

    def _read(self, slab: Slab) -> Buffer:
        buffer = self._free.get()
        view = buffer.memory
        try:
            for piece in slab:
                index = self._outputs[piece.output].index
                self._source.read(index, piece.row, view[piece.begin : piece.begin + piece.stored])
        except BaseException:
            self._free.put(buffer)
            raise
        return buffer

    def write(self, number: int, slab: Slab, results: Sequence[memoryview], buffer: Buffer) -> None:
        """Hand the bytes of each piece to the writer; waits when too many are on the way."""
        late = []
        with self._changed:
            self._early[number] = slab, results, buffer
            while (following := self._early.pop(self._next, None)) is not None:
                self._writing.append(self._writer.submit(self._write, *following))
                self._next += 1
            while len(self._writing) > WRITE_BEHIND:
                late.append(self._writing.popleft())
        for written in late:
            written.result()

    def _write(self, slab: Slab, results: Sequence[memoryview], buffer: Buffer) -> None:
        try:
            for piece, blocks in zip(slab, results, strict=True):
                self._target.write(piece.output, blocks, piece.at)
        finally:
            self._free.put(buffer)
            with self._changed:
                self._written += 1
                self._changed.notify_all()

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            while kind is None and self._writing:
                self._writing.popleft().result()
        finally:
            self.stop()
            self._readers.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)
