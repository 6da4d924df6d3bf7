"""One device's share of a stream of work: copies and kernels of several turns overlap.

    turn = lane.turn()
    with turn:                       # whatever is launched here goes to the turn's own stream
        values = turn.put(host)
        result = turn.take(compute(values))
    ...                              # other turns
    turn.wait()                      # now `result` is on the host

On the CPU everything has happened when a call returns, and nothing is copied. It has several lanes,
each for a thread of its own: a slab's way from values to bytes, checks and all, is one core's.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import TracebackType
from typing import Self

import numpy
import torch
from torch import Tensor

from gpukit_kernels.cpu.plain import CPU_LANES

# Turns that a GPU has under way: one copies in, one computes, one copies out.
DEEP = 3


class Turn:
    """One piece of work on its way through a device."""

    # Whether results are there when a call returns: then they may decide what is done next.
    at_once = True

    def put(self, host: Tensor) -> Tensor:
        """`host` on the device; it must not change before `wait` returns."""
        return host

    def take(self, result: Tensor) -> Tensor:
        """`result` on the host, once `wait` has returned."""
        return result

    def wait(self) -> None:
        """Return when everything that was launched in this turn is done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the turn; nothing more is launched in it."""


class _StreamTurn(Turn):
    at_once = False

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._done = torch.cuda.Event()
        self._context = torch.cuda.stream(stream)

    def put(self, host: Tensor) -> Tensor:
        return host.to(self._stream.device, non_blocking=True)

    def take(self, result: Tensor) -> Tensor:
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        return host.copy_(result, non_blocking=True)

    def wait(self) -> None:
        self._done.synchronize()

    def __enter__(self) -> Self:
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.record(self._stream)
        self._context.__exit__(kind, error, trace)


def copied_from(count: int, device: torch.device) -> Tensor:
    """uint8 `[count]` on the host, of which copies to `device` are fast and need not be waited for
    by who begins them."""
    return torch.empty(count, dtype=torch.uint8, pin_memory=device.type == "cuda")


def in_large_pages(count: int) -> Tensor:
    """uint8 `[count]` on the CPU, not filled: memory of NumPy's, which asks for large pages where
    the system has them. What is read from end to end for every token is so some percent faster."""
    return torch.from_numpy(numpy.empty(count, numpy.uint8))


def zeros_by_page(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros `shape` of which, on the CPU, only the pages that are written to take memory."""
    nbytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or os.name != "posix" or not nbytes:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def turn_on(device: torch.device) -> Turn:
    """A turn among whatever else the thread launches on `device`, in its order."""
    return _StreamTurn(torch.cuda.current_stream(device)) if device.type == "cuda" else Turn()


def lanes(device: torch.device) -> "list[Lane]":
    """The lanes that keep all of `device` busy."""
    count = min(torch.get_num_threads(), CPU_LANES) if device.type == "cpu" else 1
    return [Lane(device) for _ in range(count)]


@contextmanager
def sharing(lanes: "Sequence[Lane]") -> Iterator[None]:
    """Within it every lane's thread, if it begins here, has its share of torch's threads."""
    number, busy = torch.get_num_threads(), sum(lane.device.type == "cpu" for lane in lanes)
    torch.set_num_threads(max(number // max(busy, 1), 1))
    try:
        yield
    finally:
        torch.set_num_threads(number)


@contextmanager
def alone() -> Iterator[None]:
    """Within it torch's own operations run on this thread alone; short ones are faster so."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


class Lane:
    """The turns of one device, each on the next of its streams."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: list[torch.cuda.Stream] = []
        if device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in range(DEEP)]
        self._turns = 0

    @property
    def depth(self) -> int:
        """Turns that should be under way before the first of them is waited for."""
        return max(len(self._streams) - 1, 0)

    def turn(self) -> Turn:
        """The next turn."""
        if not self._streams:
            return Turn()
        self._turns += 1
        return _StreamTurn(self._streams[self._turns % len(self._streams)])
