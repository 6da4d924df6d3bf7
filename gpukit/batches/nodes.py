"""What a portion of a batch needs of a node of a cluster, against what the nodes have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpukit.batches.portions import Portion
from gpukit.batches.shares import ANY_GPU
from gpukit.errors import ArgumentError, GpukitError

# A node's resources by Ray's names: CPU, GPU, memory in bytes, and what it was started with.
Resources = Mapping[str, float]
# What a process with torch takes beside its buffers.
PROCESS = 1 << 30
# The custom resource that nodes may have: GB of outputs that they may have under way.
DISK, GB = "disk", 10**9
UNITS = {"CPU": "cores", "GPU": "GPUs", "memory": "bytes of memory", DISK: "GB of `disk`"}


@dataclass(frozen=True)
class Wanted:
    """What a task asks a node for."""

    cpus: int
    gpus: int
    memory: int
    disk: int

    def options(self) -> dict[str, Any]:
        """The same as Ray's options of a task."""
        return {
            "num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory,
            "resources": {DISK: self.disk} if self.disk else {},
        }  # fmt: skip

    def of(self) -> Resources:
        """The same by the names of a node's resources."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory, DISK: self.disk}


def wanted(portion: Portion, nodes: Sequence[Resources], jobs: int | None) -> Wanted:
    """What a task for `portion` asks for: a GPU where any will do and there are some; so many cores
    that `jobs` tasks, or one for each GPU, or one, have a node for themselves; memory for the
    buffers; disk where nodes have it as a resource.

    `ArgumentError` for a plan that numbers GPUs itself, `GpukitError` where no node can have it.
    """
    device = portion.standings[0].job.options.device
    if any("cuda:" in at.job.options.device for at in portion.standings):
        raise ArgumentError(
            f"device {device}: Ray says which GPU a task has; write `device: auto` or cuda"
        )
    able = [node for node in nodes if node.get("GPU", 0) >= 1]
    on_gpu = device == "cuda" or (device in ANY_GPU and bool(able))
    # Where no node has a GPU, what is to be on one is refused below.
    homes = [node for node in (able if on_gpu and able else nodes) if node.get("CPU", 0) >= 1]
    cores = [
        int(node["CPU"] // (jobs or (node.get("GPU", 0) if on_gpu else 1) or 1)) for node in homes
    ]
    rows = () if portion.measures else portion.prepared.result.rows
    size = sum(row.size or 0 for row in rows)
    found = Wanted(
        cpus=max(min(cores, default=1), 1),
        gpus=int(on_gpu),
        memory=portion.buffers + PROCESS,
        disk=-(-size // GB) if any(DISK in node for node in nodes) else 0,
    )
    _check(portion, found, nodes)
    return found


def _check(portion: Portion, found: Wanted, nodes: Sequence[Resources]) -> None:
    if any(all(node.get(k, 0) >= need for k, need in found.of().items()) for node in nodes):
        return
    target = portion.standings[0].job.target
    for name, need in found.of().items():
        most = max((node.get(name, 0) for node in nodes), default=0)
        if most < need:
            raise GpukitError(
                f"{target}: {need:g} {UNITS[name]} are needed, the largest node has {most:g}; add "
                "a larger node, or change `memory` or `device` in the plan's options"
            )
    raise GpukitError(
        f"{target}: no node has all that is needed: "
        + ", ".join(f"{need:g} {UNITS[name]}" for name, need in found.of().items() if need)
    )
