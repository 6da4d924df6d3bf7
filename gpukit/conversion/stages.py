"""The threads around the computation: readers ahead of it, writers behind it.

Slabs are handed out in the order of the file, and results are handed to the writers in that order,
whoever computes them; several writers may end in another. Readers get a buffer before they begin,
so that a thread that computes waits for the disk at most, never for itself.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from typing import Any, Protocol

from gpukit.conversion.engine import Buffer, Engine
from gpukit.conversion.slabs import Slab, stored_bytes


@dataclass(frozen=True)
class Pace:
    """What one kind of device is fed with: weights in a slab at most, threads that read and that
    write, slabs that are read ahead, and results that wait for the disk."""

    weights: int
    readers: int
    writers: int
    ahead: int
    behind: int


class Writer(Protocol):
    """Where results go: a file or the parts of one. `in_order`: only what comes in the order of
    the file is quick."""

    @property
    def in_order(self) -> bool: ...

    def write(self, index: int, data: memoryview, start: int) -> None: ...


@dataclass(frozen=True)
class Computed:
    """The bytes of each piece of a slab on the host, and the buffer that they may lie in."""

    slab: Slab
    blocks: Sequence[memoryview]
    buffer: Buffer | None


class Stages:
    """A pass's readers and writers; use as a context manager."""

    def __init__(
        self,
        engine: Engine[Any, Any],
        slabs: Sequence[Slab],
        writer: Writer,
        pace: Pace,
        under_way: int,
    ) -> None:
        self._engine = engine
        self._source = engine.source
        self._outputs = engine.outputs
        self._slabs = deque(enumerate(slabs))
        self._to_read = deque(enumerate(slabs))
        self._target = writer
        self._pace = pace
        self._size = max(map(stored_bytes, slabs), default=0)
        # Slabs from the first that is not written to the last that is read: more than are read
        # ahead, those in hand and those that wait for the disk.
        self._window = min(pace.ahead + under_way + pace.behind, len(slabs))
        # Made by the readers when they are first used: pinning memory takes time.
        self._free: list[Buffer | None] = [None] * self._window
        self._readers = ThreadPoolExecutor(pace.readers, "gpukit-read")
        writers = 1 if writer.in_order else pace.writers
        self._writers = ThreadPoolExecutor(writers, "gpukit-write")
        self._reading: deque[Future[Buffer]] = deque()
        self._writing: deque[Future[None]] = deque()
        # Results that came before those of an earlier slab, by their numbers.
        self._early: dict[int, Computed] = {}
        self._next = self._written = 0
        self._changed = Condition()

    def __enter__(self) -> "Stages":
        return self

    def take(self, wait: bool) -> tuple[int, Slab, Buffer] | None:
        """The next slab's number, the slab and the buffer with its bytes, for `give_back` or
        `write`; None at the end, and where there is no buffer for it and `wait` is false."""
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
            len(self._reading) <= self._pace.ahead
            and self._to_read
            and self._free
            and self._to_read[0][0] < self._written + self._window
        ):
            slab = self._to_read.popleft()[1]
            self._reading.append(self._readers.submit(self._read, slab, self._free.pop()))
        return bool(self._reading)

    def stop(self) -> None:
        """Let nobody take a slab any more."""
        with self._changed:
            self._slabs.clear()
            self._changed.notify_all()

    def _read(self, slab: Slab, buffer: Buffer | None) -> Buffer:
        buffer = buffer or self._engine.buffer(self._size)
        view = buffer.memory
        for piece in slab:
            index = self._outputs[piece.output].index
            self._source.read(index, piece.row, view[piece.begin : piece.begin + piece.stored])
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Let another slab be read into the buffer."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    def write(self, number: int, computed: Computed) -> None:
        """Hand the bytes of slab `number` to the writers; waits when too many are on the way."""
        late = []
        with self._changed:
            self._early[number] = computed
            while (following := self._early.pop(self._next, None)) is not None:
                self._writing.append(self._writers.submit(self._write, following))
                self._next += 1
            while len(self._writing) > self._pace.behind:
                late.append(self._writing.popleft())
        for written in late:
            written.result()

    def _write(self, computed: Computed) -> None:
        try:
            for piece, blocks in zip(computed.slab, computed.blocks, strict=True):
                self._target.write(piece.output, blocks, piece.at)
        finally:
            with self._changed:
                if computed.buffer is not None:
                    self._free.append(computed.buffer)
                self._written += 1
                self._changed.notify_all()

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            while kind is None and self._writing:
                self._writing.popleft().result()
        finally:
            self.stop()
            self._readers.shutdown(cancel_futures=True)
            self._writers.shutdown(cancel_futures=True)
