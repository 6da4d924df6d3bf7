"""What the jobs that are left need of disks and memory, against what is there."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.batches.matrix import Job
from gpukit.conversion.pipeline import BYTES_PER_WEIGHT
from gpukit.errors import DiskError, GpukitError
from gpukit.planning.plan import QuantizePlan
from gpukit.store.store import Store

MEMINFO = Path("/proc/meminfo")


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


def memory_need(wanted: Iterable[int]) -> Need | None:
    """What the largest job needs; None without jobs, or where the system does not tell what is
    free."""
    free, most = _available(), max(wanted, default=0)
    return Need("memory", most, free) if free is not None and most else None


def check(disks: Iterable[Need], memory: Need | None) -> None:
    """`DiskError` or GpukitError, with both numbers, for what does not fit."""
    for need in disks:
        if need.needed > need.free:
            raise DiskError(
                f"{need.place}: the outputs need {need.needed} bytes, {need.free} are free; make "
                "room, or write fewer or elsewhere"
            )
    if memory is not None and memory.needed > memory.free:
        raise GpukitError(
            f"buffers of {memory.needed} bytes are needed, {memory.free} bytes of memory are free; "
            "give `memory` in the plan's options, as 1G"
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
