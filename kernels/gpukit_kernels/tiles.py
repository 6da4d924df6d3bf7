"""Runs the types' torch functions over whole tensors, tile by tile: scratch memory stays small.

A tile is `[elements, lanes]`: lanes are consecutive blocks, element i of all of them is one row.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from gpukit_kernels.program import Program
from gpukit_kernels.table import QuantType

# Weights that a thread takes at a time through a compiled program, whose tiles are smaller: enough
# for Python to be nothing, and few enough for threads to end together.
PROGRAM_PART = 1 << 17

MOST_THREADS = 16

# Weights in a tile of the eager path, where each operation is a call of its own: fewer, and Python
# is what takes time; more, and scratch tensors leave the second-level cache and malloc's own pool
# (measured: half and twice as many are slower for every type). Scratch is some 5 MB a thread.
EAGER_TILE = 1 << 17

# Values of a strided tensor that are copied at a time.
SLAB = 1 << 22


def slabs(tensor: Tensor, unit: int) -> Iterator[Tensor]:
    """Contiguous `[k, unit]` pieces of `tensor` in order; a strided one is copied in pieces."""
    if tensor.is_contiguous() or tensor.ndim == 1 or tensor.numel() <= SLAB:
        yield tensor.reshape(-1, unit)
    elif tensor.shape[0] == 1:
        yield from slabs(tensor[0], unit)
    else:
        for part in tensor.split(max(1, tensor.shape[0] * SLAB // tensor.numel())):
            yield from slabs(part, unit)


class Importance(NamedTuple):
    """The importance of the values of a row, in blocks; of each expert its own."""

    columns: Tensor  # float32 [experts, blocks of a row, block]
    rows: int  # of an expert

    def at(self, first: int, lanes: int) -> Tensor:
        """float32 `[lanes, block]`: that of `lanes` blocks of rows, one after the other, from block
        `first` on."""
        experts, of_row, block = self.columns.shape
        index = torch.arange(first, first + lanes)
        expert = index // (of_row * max(self.rows, 1)) % experts
        return self.columns.view(-1, block)[expert * of_row + index % of_row]

    def mean_squares(self, values: Tensor) -> Tensor:
        """float32 `[blocks]`: for each of `values [blocks, block]` the mean of x * x over its row.

        A row is added up from its first value on, one after the other, in float32.
        """
        count = self.columns.shape[1]
        rows = values.view(-1, self.columns[0].numel())
        sums = torch.empty(rows.shape[0], dtype=torch.float32)
        part = max(1, SLAB // 4 // rows.shape[1])
        for some, into in zip(rows.split(part), sums.split(part), strict=True):
            squares = some.to(torch.float32).square().numpy()
            with numpy.errstate(all="ignore"):
                into.copy_(torch.from_numpy(numpy.add.accumulate(squares, axis=1)[:, -1]))
        return (sums / rows.shape[1]).repeat_interleave(count)


def encode_eager(
    values: Tensor, row: QuantType, out: Tensor, importance: Importance | None = None
) -> None:
    """Fills uint8 `out [blocks, nbytes]` from `[blocks, block]` float32, float16 or bfloat16.

    With `importance` the blocks are whole rows.
    """
    encoder = row.encoder()
    weighted = row.weighted if importance else None
    means = _means(values, row, importance)

    def encode(start: int, stop: int) -> None:
        x = values[start:stop].t().to(torch.float32).contiguous()
        if weighted and importance:
            weights = importance.at(start, stop - start).t().contiguous()
            blocks = weighted(x, weights, means[start:stop])
        else:
            blocks = encoder(x)
        out[start:stop].copy_(blocks.t())

    _spread(encode, len(values), EAGER_TILE // row.block)


def _means(values: Tensor, row: QuantType, importance: Importance | None) -> Tensor:
    """float32 `[blocks]`: the rows' mean squares, zeros for a type that does not look at them."""
    if importance and row.weighted and row.row_mean and len(values):
        return importance.mean_squares(values)
    return torch.zeros(len(values) if importance else 0)


def decode_eager(blocks: Tensor, row: QuantType, out: Tensor) -> None:
    """Fills `out [blocks, block]` of any float type from uint8 `[blocks, nbytes]`."""

    def decode(start: int, stop: int) -> None:
        some = blocks[start:stop].t()
        # A block of one value lies as its bytes are read; side by side they would be a detour.
        out[start:stop].copy_(row.decode(some if row.block == 1 else some.contiguous()).t())

    _spread(decode, len(blocks), EAGER_TILE // row.block)


# One spread at a time: torch's number of threads belongs to the process.
_spreading = threading.Lock()


def _spread(work: Callable[[int, int], None], count: int, lanes: int) -> None:
    """`work(start, stop)` for each `lanes` of `count` blocks, on torch's number of threads.

    A thread takes whole tiles and runs each operation alone: short operations on all threads meet
    some hundred times a tile and reach half the speed.
    """
    tiles = iter([(start, min(start + lanes, count)) for start in range(0, count, lanes)])
    number = torch.get_num_threads()
    if count <= lanes or number == 1 or not _spreading.acquire(blocking=False):
        for tile in tiles:
            work(*tile)
        return
    failures: list[BaseException] = []
    turn = threading.Lock()

    def run() -> None:
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                while not failures:
                    with turn:
                        tile = next(tiles, None)
                    if tile is None:
                        return
                    work(*tile)
        except BaseException as error:  # handed to the caller below
            failures.append(error)

    try:
        threads = [
            threading.Thread(target=run, name="gpukit-tiles", daemon=True)
            for _ in range(min(number, MOST_THREADS))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        # What a thread has set for itself counts for every thread that begins later, too.
        torch.set_num_threads(number)
        _spreading.release()
    if failures:
        raise failures[0]


def encode_program(
    values: Tensor,
    row: QuantType,
    out: Tensor,
    program: Program,
    importance: Importance | None = None,
) -> None:
    """As `encode_eager`, through the compiled program of `row`."""
    means = _means(values, row, importance)

    def encode(start: int, stop: int) -> None:
        given: tuple[Any, ...] = ()
        if importance is not None and row.weighted is not None:
            given = (importance.columns, importance.rows, means[start:stop])
        some = values[start:stop]
        # A program reads the wider float and the half of it.
        some = some.to(torch.float32) if values.dtype is torch.float16 else some
        program.run(some.contiguous(), out[start:stop], start, *given)

    lanes = program.lanes
    _spread(encode, len(values), max(PROGRAM_PART // row.block // lanes, 1) * lanes)
