"""What the jobs that are left need of disks, memory and GPUs, against what is there."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.batches.matrix import Job
from gpukit.batches.shares import ANY_GPU, Shares
from gpukit.conversion.device_memory import CONTEXT, device_bytes
from gpukit.conversion.pipeline import BYTES_PER_WEIGHT, BYTES_WRITTEN
from gpukit.errors import DiskError, GpukitError
from gpukit.planning.plan import QuantizePlan
from gpukit.store.store import Store

MEMINFO = Path("/proc/meminfo")
# What memory is needed for.
BUFFERS, MODELS = "memory", "memory to evaluate"


@dataclass(frozen=True)
class Need:
    """Bytes that are needed and bytes that are free on the file system of `place`, or in memory."""

    place: str
    needed: int
    free: int

    def as_json(self) -> dict[str, Any]:
        return {"place": self.place, "needed": self.needed, "free": self.free}


def buffers(job: Job, plan: QuantizePlan) -> int:
    """Bytes of host memory that a job's buffers take at most: its budget, or all of a small
    model."""
    return min(job.options.memory, BYTES_PER_WEIGHT * sum(s.n_elements for s in plan.specs))


def on_device(job: Job, plan: QuantizePlan, together: int = 1) -> int:
    """Bytes that a job takes at most of a GPU, if it is made on one: in a pass with others, so many
    `together`, or alone."""
    merged = bool(job.adapter.adapters)
    return max(
        device_bytes(plan, job.options.memory, merged=merged, outputs=outputs)
        for outputs in {1, max(together, 1)}
    )


def in_one_pass(jobs: Sequence[Job], alone: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Bytes of host memory and of a GPU for jobs that one pass makes, of which each alone would
    take so many; models of the store are made alone."""
    host, gpu = (max(each) for each in zip(*alone, strict=True))
    if jobs[0].stored is not None:
        return host, gpu
    # Each other output has its results of every slab.
    more = BYTES_WRITTEN * (len(jobs) - 1)
    host += host * more // BYTES_PER_WEIGHT
    gpu += max(gpu - CONTEXT, 0) * more // BYTES_PER_WEIGHT
    return min(host, max(job.options.memory for job in jobs)), gpu


def disk_needs(sizes: Iterable[tuple[Job, int]]) -> list[Need]:
    """What results of these sizes need, for each file system that they go to. A result that takes
    the place of another is counted whole: the old one goes when the new one is there."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for job, size in sizes:
        folder = _existing(job.output.parent if job.output is not None else Store().blobs)
        device = folder.stat().st_dev
        places.setdefault(device, folder)
        needed[device] = needed.get(device, 0) + size
    return [
        Need(str(places[device]), size, shutil.disk_usage(places[device]).free)
        for device, size in needed.items()
    ]


def memory_need(wanted: Iterable[int], workers: int = 1, what: str = BUFFERS) -> Need | None:
    """What those need together for `what` that are made at a time, of groups of jobs the largest;
    None without any, or where the system does not tell what is free."""
    free, most = _available(), sum(sorted(wanted)[-workers:])
    return Need(what, most, free) if free is not None and most else None


def device_needs(
    wanted: Sequence[tuple[str, int]], shares: Shares, free: Sequence[int]
) -> list[Need]:
    """What workers need of each GPU, of which so many bytes are free; `wanted` are the device of
    each job and its bytes there. Any worker may come upon a job that names its GPU itself."""
    found = []
    for number, there in enumerate(free):
        of_any = max((size for name, size in wanted if name in ANY_GPU), default=0)
        own = max((size for name, size in wanted if f"cuda:{number}" in name.split(",")), default=0)
        most = max(of_any * shares.workers_on(number), own * shares.workers)
        if most:
            found.append(Need(f"cuda:{number}", most, there))
    return found


def check(disks: Iterable[Need], memory: Need | None, gpus: Iterable[Need] = ()) -> None:
    """`DiskError` or GpukitError, with both numbers, for what does not fit."""
    for need in disks:
        if need.needed > need.free:
            raise DiskError(
                f"{need.place}: the outputs need {need.needed} bytes, {need.free} are free; make "
                "room, or write fewer or elsewhere"
            )
    if memory is not None and memory.place == MODELS and memory.needed > memory.free:
        raise GpukitError(
            f"to evaluate, models of {memory.needed} bytes are needed in memory at a time, "
            f"{memory.free} bytes are free; give fewer --jobs, or take `evaluate` out of the plan "
            "for results of this size"
        )
    if memory is not None and memory.needed > memory.free:
        raise GpukitError(
            f"buffers of {memory.needed} bytes are needed, {memory.free} bytes of memory are free; "
            "give `memory` in the plan's options, as 1G, or fewer --jobs"
        )
    for need in gpus:
        if need.needed > need.free:
            raise GpukitError(
                f"{need.place}: {need.needed} bytes are needed by the workers there, {need.free} "
                "are free; give fewer --jobs, `memory` in the plan's options, or `device: cpu`"
            )


def _existing(folder: Path) -> Path:
    """`folder`, or what is there of the way to it."""
    return next(path for path in _upwards(folder) if path.exists())


def _upwards(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    yield folder
    yield from folder.parents


def _available() -> int | None:
    """Bytes of memory that programs can have without others being pushed out."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return int(found.split()[1]) * 1024 if found else None
