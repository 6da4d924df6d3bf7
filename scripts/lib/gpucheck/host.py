"""What bounds a pass beside the kernels: the host's reading, writing and pinning, and imports."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from gpucheck.base import Plan

CHUNK = 1 << 24
# Chunks that are read or written in one measurement.
CHUNKS = 48
# Imports in a process of their own, the second time from warm page caches.
MODULES = ("torch", "gpukit_kernels.ops", "gpukit.conversion.torch_engine", "gpukit_cli.app")
CODE = "import time; b = time.monotonic(); import {}; print(time.monotonic() - b)"


def _spread(work: Callable[[int], object], threads: int, chunks: int) -> float:
    """Bytes a second of `work` on so many chunks by so many threads."""
    numbers, lock = count(), threading.Lock()

    def run() -> None:
        while True:
            with lock:
                number = next(numbers)
            if number >= chunks:
                return
            work(number)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    begin = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return chunks * CHUNK / (time.monotonic() - begin)


def _files(path: Path, chunks: int) -> dict[str, float]:
    """GB/s of new pages in one file by one, two and three writers, then by readers."""
    data = torch.randint(0, 256, (CHUNK,), dtype=torch.uint8).numpy().data
    found = {}
    for threads in (1, 2, 3):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.ftruncate(fd, chunks * CHUNK)
        rate = _spread(lambda at, fd=fd: os.pwrite(fd, data, at * CHUNK), threads, chunks)
        found[f"write by {threads}"] = rate / 1e9
        os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    room = threading.local()

    def read(at: int) -> None:
        if not hasattr(room, "memory"):
            room.memory = torch.zeros(CHUNK, dtype=torch.uint8).numpy().data
        os.preadv(fd, [room.memory], at * CHUNK)

    for threads in (1, 2, 4, 8):
        found[f"read by {threads}"] = _spread(read, threads, chunks) / 1e9
    os.close(fd)
    path.unlink()
    return found


def _pinned(plan: Plan) -> dict[str, float]:
    """Seconds of pinning memory, and GB/s of copies from and to it."""
    begin = time.monotonic()
    memory = torch.empty(16 * CHUNK, dtype=torch.uint8, pin_memory=True)
    found = {"pin 256 MiB, seconds": time.monotonic() - begin}
    there = torch.empty_like(memory, device=plan.device)
    for name, (to, come) in {"in": (there, memory), "out": (memory, there)}.items():
        for _ in range(2):  # the first touches the device's memory
            torch.cuda.synchronize()
            begin = time.monotonic()
            to.copy_(come, non_blocking=True)
            torch.cuda.synchronize()
        found[f"copy {name}"] = memory.numel() / (time.monotonic() - begin) / 1e9
    return found


def _imports() -> dict[str, list[float]]:
    """Seconds of each of `MODULES` in a new process, twice."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found: dict[str, list[float]] = {}
    for name in MODULES * 2:
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(name)],
            capture_output=True, text=True, check=False, timeout=30, env=env,
        )  # fmt: skip
        if done.returncode == 0:
            found.setdefault(name, []).append(float(done.stdout))
    return found


def time_host(plan: Plan) -> dict[str, Any]:
    """GB/s and seconds of all of it."""
    chunks = CHUNKS if plan.big > 1 else 2
    found: dict[str, Any] = {"files": _files(plan.at / "probe", chunks), "imports": _imports()}
    if plan.cuda:
        found["pinned"] = _pinned(plan)
    return found
