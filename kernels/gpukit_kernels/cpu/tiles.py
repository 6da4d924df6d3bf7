"""Runs the types' torch functions over whole tensors, tile by tile: scratch memory stays small.

A tile is `[elements, lanes]`: lanes are consecutive blocks, element i of all of them is one row.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gpukit_kernels.cpu import plain
from gpukit_kernels.cpu.program import Program
from gpukit_kernels.table import QuantType
from gpukit_kernels.turns import alone

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


def encode_eager(
    values: Tensor, row: QuantType, out: Tensor, importance: Importance | None = None
) -> None:
    """Fills uint8 `out [blocks, nbytes]` from `[blocks, block]` float32, float16 or bfloat16.

    With `importance` the blocks are whole rows.
    """
    weighted = row.weighted if importance else None
    encoder = None if weighted else row.encoder()
    means = _means(values, row, importance)

    def encode(start: int, stop: int) -> None:
        x = values[start:stop].t().to(torch.float32).contiguous()
        if encoder:
            blocks = encoder(x)
        else:
            assert weighted
            assert importance
            weights = importance.at(start, stop - start).t().contiguous()
            blocks = weighted(x, weights, means[start:stop])
        out[start:stop].copy_(blocks.t())

    spread(encode, len(values), EAGER_TILE // row.block)


def _means(values: Tensor, row: QuantType, importance: Importance | None) -> Tensor:
    """float32 `[blocks]`: the rows' mean squares, zeros for a type that does not look at them."""
    if importance is None or not len(values):
        return torch.zeros(0)
    of_row = importance.columns.shape[1]
    rows = _array(values.view(-1, of_row * row.block))
    return torch.from_numpy(plain.block_means(rows, of_row, row.row_mean))


def _array(values: Tensor) -> plain.Array:
    """The values of a CPU tensor; bfloat16 as uint16."""
    found = values.detach()
    return (found.view(torch.uint16) if found.dtype is torch.bfloat16 else found).numpy()


def decode_eager(blocks: Tensor, row: QuantType, out: Tensor) -> None:
    """Fills `out [blocks, block]` of any float type from uint8 `[blocks, nbytes]`."""

    def decode(start: int, stop: int) -> None:
        some = blocks[start:stop].t()
        # A block of one value lies as its bytes are read; side by side they would be a detour.
        out[start:stop].copy_(row.decode(some if row.block == 1 else some.contiguous()).t())

    spread(decode, len(blocks), EAGER_TILE // row.block)


# One spread at a time: torch's number of threads belongs to the process.
_spreading = threading.Lock()


def spread(work: Callable[[int, int], None], count: int, lanes: int) -> None:
    """`work(start, stop)` for each `lanes` of `count` blocks, on torch's number of threads.

    A thread takes whole tiles and runs each operation alone: short operations on all threads meet
    some hundred times a tile and reach half the speed.
    """
    number = torch.get_num_threads()
    if count <= lanes or number == 1 or not _spreading.acquire(blocking=False):
        plain.spread(work, count, lanes, 1)
        return
    try:
        plain.spread(work, count, lanes, number, _alone)
    finally:
        # What a thread has set for itself counts for every thread that begins later, too.
        torch.set_num_threads(number)
        _spreading.release()


@contextmanager
def _alone() -> Iterator[None]:
    with alone(), torch.inference_mode():
        yield


def encode_program(
    values: Tensor,
    row: QuantType,
    out: Tensor,
    program: Program,
    importance: Importance | None = None,
) -> None:
    """As `encode_eager`, through the compiled program of `row`."""
    columns, rows, means = None, 1, None
    if importance is not None and row.weighted is not None:
        columns, rows = _array(importance.columns), importance.rows
        means = _array(_means(values, row, importance))
    number = torch.get_num_threads()
    blocks = _array(values.contiguous())
    plain.encode_blocks(blocks, _array(out), program, columns, rows, means, number)
