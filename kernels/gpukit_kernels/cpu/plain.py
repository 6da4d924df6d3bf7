"""The CPU without torch: numpy arrays through the programs that earlier processes have left.

Importing torch and Triton takes seconds, which is as long as a small model takes to quantise. The
bytes are those of `ops.quantize`, which goes through the same programs.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy
from numpy.typing import NDArray

from gpukit_kernels.cpu.program import Program
from gpukit_kernels.devices import Device, device_name
from gpukit_kernels.facts import TypeFacts

Array = NDArray[Any]

# Weights that a thread takes at a time through a program, whose tiles are smaller: enough for
# Python to be nothing, and few enough for threads to end together.
PART = 1 << 17
MOST_THREADS = 16
# Lanes of a CPU at most, threads that each have a slab in hand.
CPU_LANES = 8
NVIDIA_DRIVER, AMD_DRIVER = "libcuda.so.1", "/dev/kfd"
# Values that are looked at in one go: they stay in the second-level cache.
LOOK = 1 << 16
# Values whose squares are added up in one go.
SQUARES = 1 << 20


def is_cpu(device: Device) -> bool:
    """Whether `device`, as `ops.device` takes it, is the CPU whatever torch says: there is no
    driver with which it could find a GPU."""
    name = device_name(device)
    if name != "auto" or os.path.exists(AMD_DRIVER):
        return name == "cpu"
    try:
        ctypes.CDLL(NVIDIA_DRIVER)
    except OSError:
        return True
    return False


def cpu_threads() -> int:
    """Threads that torch would use: $OMP_NUM_THREADS, or the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def quantize_rows(
    values: Array,
    facts: TypeFacts,
    program: Program,
    importance: NDArray[numpy.float32] | None = None,
    threads: int = 1,
) -> NDArray[numpy.uint8]:
    """uint8 `[rows, row_bytes]`: `values`, contiguous `[rows, n]`, as blocks of a type.

    `values` is float32, float16, or bfloat16 as uint16. `importance` is float32 `[experts, n]`, of
    as many rows each; the program is then the one with importance. `QuantError` for rows that
    blocks do not divide.
    """
    count, width = values.shape
    out = numpy.empty((count, facts.row_bytes(width)), dtype=numpy.uint8)
    if not values.size:
        return out
    columns, means, rows = None, None, count
    if importance is not None:
        columns = numpy.ascontiguousarray(importance).reshape(len(importance), -1, facts.block)
        rows = count // len(importance)
        means = block_means(values, width // facts.block, facts.row_mean)
    encode_blocks(
        values.reshape(-1, facts.block), out.reshape(-1, facts.nbytes), program, columns, rows,
        means, threads,
    )  # fmt: skip
    return out


def encode_blocks(
    blocks: Array,
    out: NDArray[numpy.uint8],
    program: Program,
    columns: NDArray[numpy.float32] | None,
    rows: int,
    means: NDArray[numpy.float32] | None,
    threads: int,
) -> None:
    """Fill `out [blocks, nbytes]` from `blocks [blocks, block]` on so many threads; as
    `Program.encoder`."""
    lanes = program.lanes
    part = max(PART // blocks.shape[1] // lanes, 1) * lanes
    encode = program.encoder(blocks, out, columns, rows, means)
    spread(encode, len(blocks), part, threads)


def spread(
    work: Callable[[int, int], None],
    count: int,
    step: int,
    threads: int,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """`work(start, stop)` for each `step` of `count`, on up to `threads` threads, this one among
    them, each within `around()`; raises what the first to fail raises."""
    ranges = [(start, min(start + step, count)) for start in range(0, count, step)]
    parts = iter(ranges)
    if count <= step or threads <= 1:
        for start, stop in parts:
            work(start, stop)
        return
    failures: list[BaseException] = []
    turn = threading.Lock()

    def run() -> None:
        try:
            with around():
                while not failures:
                    with turn:
                        part = next(parts, None)
                    if part is None:
                        return
                    work(*part)
        except BaseException as error:  # handed to the caller below
            failures.append(error)

    workers = [
        threading.Thread(target=run, name="gpukit-tiles", daemon=True)
        for _ in range(min(threads, MOST_THREADS, len(ranges)) - 1)
    ]
    for worker in workers:
        worker.start()
    run()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def block_means(values: Array, of_row: int, needed: bool) -> NDArray[numpy.float32]:
    """float32 `[rows * of_row]`: for each block of `values [rows, n]` the mean of x * x over its
    row, or zeros where that is not `needed`.

    A row is added up from its first value on, one after the other, in float32.
    """
    count, width = values.shape
    if not needed:
        return numpy.zeros(count * of_row, dtype=numpy.float32)
    sums = numpy.empty(count, dtype=numpy.float32)
    part = max(1, SQUARES // width)
    with numpy.errstate(all="ignore"):
        for start in range(0, count, part):
            some = as_float32(values[start : start + part])
            squares = numpy.square(some)
            sums[start : start + part] = numpy.add.accumulate(squares, axis=1)[:, -1]
        return numpy.repeat(sums / numpy.float32(width), of_row)


def as_float32(values: Array) -> NDArray[numpy.float32]:
    """`values` as float32, exactly: float32, float16, or bfloat16 as uint16."""
    if values.dtype == numpy.uint16:
        return (values.astype(numpy.uint32) << 16).view(numpy.float32)
    return values.astype(numpy.float32, copy=False)


def largest(values: Array) -> float:
    """The largest magnitude of `values`, NaN or infinity where there is one; 0 of no values."""
    bits = values.reshape(-1).view(numpy.uint32 if values.itemsize == 4 else numpy.uint16)
    # Without their signs floats are in the order of their bits, infinity and NaN last.
    mask = bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1)
    room = numpy.empty(min(LOOK, bits.size), dtype=bits.dtype)
    most = 0
    for start in range(0, bits.size, LOOK):
        part = bits[start : start + LOOK]
        most = max(most, int(numpy.bitwise_and(part, mask, out=room[: part.size]).max()))
    found = numpy.array([most], dtype=bits.dtype)
    return float(as_float32(found.view(values.dtype))[0])
