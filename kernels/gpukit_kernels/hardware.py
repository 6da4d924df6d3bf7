"""The devices that torch can use: by name, what they have, and how long work on them takes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gpukit_kernels.devices import Device, device_name
from gpukit_kernels.errors import QuantError, did_you_mean


def device(name: Device = "auto") -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; `QuantError` says what there is."""
    name = device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        hint = did_you_mean(name, ("auto", "cpu", "cuda"))
        raise QuantError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N{hint}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise QuantError(f"device {name} is not here: {count} CUDA devices found; use cpu or auto")
    return torch.device(name)


def device_list(names: Device = "auto") -> list[torch.device]:
    """The torch devices of one or several names with commas between; errors as for `device`."""
    names = device_name(names)
    found = [device(name.strip()) for name in names.split(",")]
    if len(set(map(str, found))) < len(found):
        raise QuantError(f"device {names}: one of them is named twice")
    return found


def devices() -> list[tuple[str, str, int, int]]:
    """Name, model, total and free memory in bytes of every device that torch can use."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = [("cpu", f"{os.cpu_count()} cores", pages * size, os.sysconf("SC_AVPHYS_PAGES") * size)]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append((f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    return found


def free_bytes(where: torch.device) -> int:
    """Memory in bytes that tensors can still have on `where`, with what torch keeps for them."""
    if where.type != "cuda":
        return _host_bytes()
    free, _ = torch.cuda.mem_get_info(where)
    return free + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)


def _host_bytes() -> int:
    """What Linux would give without swapping, the page cache included; elsewhere what is free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def timed(call: Callable[[], object], where: torch.device, repeats: int = 5) -> float:
    """Least seconds of `repeats` calls, after one that warms up; all work on the device counts."""
    least = float("inf")
    for turn in range(repeats + 1):
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        begin = time.perf_counter()
        call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        if turn:
            least = min(least, time.perf_counter() - begin)
    return least


# Lanes of float32 arithmetic in a multiprocessor of compute capability 8.6 and later, and of 8.0.
FP32_LANES, FP32_LANES_80 = 128, 64


def issue_rate(where: torch.device) -> float | None:
    """Float32 operations a second that a GPU can begin at its highest clock; None on the CPU and
    where torch does not tell the clock."""
    if where.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(where)
    lanes = FP32_LANES_80 if (facts.major, facts.minor) == (8, 0) else FP32_LANES
    kilohertz = getattr(facts, "clock_rate", 0)
    return facts.multi_processor_count * lanes * kilohertz * 1e3 or None
