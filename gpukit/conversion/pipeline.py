"""Read, compute and write overlapped: slabs of rows pass from the disk through the kernels back.

A few readers fetch the next slabs. A thread for each GPU computes, with several slabs under way
(one is copied in, one computed, one copied out), or a few threads for the CPU. Writers put the
results in their places. The number of slabs under way and their size bound the memory, whatever
the size of the model.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, Protocol

import gpukit_kernels as kernels
from gpukit.conversion.apart import apart
from gpukit.conversion.audit import Audit
from gpukit.conversion.choice import choose_engine
from gpukit.conversion.engine import Buffer, Engine, Wish
from gpukit.conversion.slabs import Slab, bytes_read, cut
from gpukit.conversion.stages import Computed, Pace, Stages, Writer
from gpukit.events import Report, Step
from gpukit.planning.changes import Change
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device

# Weights in a slab: 8 MiB of BF16 keep a disk and a core busy at a time, and more only takes
# memory; a GPU, whose every launch costs something, gets four times as many.
SLAB_WEIGHTS, GPU_SLAB_WEIGHTS = 1 << 22, 1 << 24
# Bytes of host memory that a weight of a slab can take, read, computed and written.
BYTES_PER_WEIGHT = 4 + 8 + 4
# Of them what each other output takes that is made of the same tensor.
BYTES_WRITTEN = 4


# Told of each slab that is through.
Advance = Callable[[Slab], None]


class Kept(Protocol):
    """What an earlier run has made of the outputs."""

    def left(self, slabs: Sequence[Slab], audit: Audit) -> list[Slab]:
        """The slabs without pieces that are there; `audit` is told what it had noted of these."""
        ...


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
    device: Device,
    budget: int,
    report: Report,
    wish: Wish = "auto",
    kept: Kept | None = None,
) -> Passed:
    """Pass every tensor through, but for what is `kept` of it. `device` may name several,
    `cuda:0,cuda:1`: slabs go to the one that is free."""
    engine = choose_engine(source, outputs, device, wish)
    return pass_through(engine, writer, title, budget, report, kept)


def pass_through(
    engine: Engine[Any, Any],
    writer: Writer,
    title: str,
    budget: int,
    report: Report,
    kept: Kept | None = None,
) -> Passed:
    """`run_pipeline` with `engine`."""
    kernels.keep_memory()
    under_way = sum(lane.depth + 1 for lane in engine.lanes)
    pace = _pace(engine)
    each = bytes_per_weight(engine.outputs)
    weights = weights_of_a_slab(pace, under_way, budget, each)
    slabs = list(cut(engine.source, engine.outputs, weights))
    total = _bytes_read(slabs, engine)
    if kept is not None:
        slabs = kept.left(slabs, engine.audit)
    before = total - _bytes_read(slabs, engine)
    done, lock = before, Lock()
    report(Step(title, done, total))

    def advance(slab: Slab) -> None:
        nonlocal done
        with lock:
            done += bytes_read(slab, engine.outputs)
            report(Step(title, done, total))

    stages = Stages(engine, slabs, writer, pace, under_way)

    def work() -> None:
        with stages, engine.running():
            _run_all([_Worker(lane, stages, engine, advance) for lane in engine.lanes])

    apart(work, stages.stop)
    return Passed(total - before, engine.fidelity(), engine.changes())


def _bytes_read(slabs: Sequence[Slab], engine: Engine[Any, Any]) -> int:
    return sum(bytes_read(slab, engine.outputs) for slab in slabs)


def bytes_per_weight(outputs: Sequence[PlannedOutput]) -> int:
    """Bytes of host memory that a weight of a slab can take, of which several outputs may be
    made."""
    most = max(Counter(output.index for output in outputs).values(), default=1)
    return BYTES_PER_WEIGHT + BYTES_WRITTEN * (most - 1)


def _pace(engine: Engine[Any, Any]) -> Pace:
    return gpu_pace() if any(lane.depth for lane in engine.lanes) else cpu_pace()


def cpu_pace() -> Pace:
    """A CPU computes slower than one thread writes."""
    return Pace(SLAB_WEIGHTS, readers=2, writers=1, ahead=3, behind=3)


def gpu_pace() -> Pace:
    """One thread copies too slowly for a GPU from the page cache and into it."""
    return Pace(GPU_SLAB_WEIGHTS, readers=4, writers=3, ahead=4, behind=4)


def weights_of_a_slab(pace: Pace, under_way: int, budget: int, each: int = BYTES_PER_WEIGHT) -> int:
    """Weights in a slab at most, so that the buffers of all slabs in memory, of `each` bytes a
    weight, fit into `budget`."""
    slabs_in_memory = pace.ahead + pace.behind + under_way
    return min(pace.weights, max(budget // (each * slabs_in_memory), 1))


class _Worker:
    """Computes in one lane until no slab is left."""

    def __init__(
        self, lane: Any, stages: Stages, engine: Engine[Any, Any], advance: Advance
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
        blocks = self._engine.end(work)
        held = self._engine.holds(slab)
        if not held:
            self._stages.give_back(buffer)
        self._stages.write(number, Computed(slab, blocks, buffer if held else None))
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
