"""How many workers a machine has, and what of it each of them gets."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpukit.errors import ArgumentError
from gpukit_kernels.cpu.plain import cpu_threads, is_cpu

# What stands for a GPU, whichever it is.
ANY_GPU = ("auto", "cuda")
# Prints the bytes that are free on each GPU.
ASK = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.cuda.mem_get_info(i)[0] for i in range(count)]))
"""


@dataclass(frozen=True)
class Shares:
    """`workers` processes, each with `threads` threads and, where there is one, a GPU."""

    workers: int
    gpus: int = 0

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(cpu_threads() // self.workers, 1)

    def device(self, worker: int) -> str | None:
        """The GPU of a worker, by its number from 0 on; None where there is none."""
        return f"cuda:{worker % self.gpus}" if self.gpus else None

    def workers_on(self, gpu: int) -> int:
        """How many workers have a GPU, by its number."""
        return len(range(gpu, self.workers, self.gpus))

    def environment(self) -> Mapping[str, str]:
        """The environment of a worker: read by OpenMP when torch loads, and where there is none."""
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads)}


ALONE = Shares(1)


def check_jobs(jobs: int | None) -> None:
    """`ArgumentError` for a number of workers that cannot be."""
    if jobs is not None and jobs < 1:
        raise ArgumentError(f"--jobs {jobs}: a number of workers is needed, from 1 on")


def shares(jobs: int | None, devices: Sequence[str], gpus: int) -> Shares:
    """The workers for groups of jobs, of which each is on one of `devices`: as many as are asked
    for, else one for each GPU if any GPU will do for one of them, else one."""
    if jobs is None:
        jobs = gpus if any(device in ANY_GPU for device in devices) else 1
    return Shares(max(min(jobs, len(devices)), 1), gpus)


def free_on_gpus(devices: Iterable[str]) -> list[int]:
    """Bytes that are free on each GPU of this machine, where any of `devices` may be one; else
    nothing. Asked in a process of its own: who asks keeps hundreds of MB of each."""
    if all(map(is_cpu, set(devices))):
        return []
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return [int(free) for free in json.loads(done.stdout.splitlines()[-1])]
    except (IndexError, ValueError):
        return []
