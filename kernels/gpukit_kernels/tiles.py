"""Runs the types' torch functions over whole tensors, tile by tile: scratch memory stays small.

A tile is `[elements, lanes]`: lanes are consecutive blocks, element i of all of them is one row.
"""

import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpukit_kernels.stages import compiled_stages, stage
from gpukit_kernels.table import QuantType

# Weights in a tile of the compiled path, a thread: 2 MiB as float32, which stays in the caches
# while some twenty search steps pass over it, and enough work between the meetings of the threads.
# Every tile has this one shape (the last is filled up), so nothing is ever compiled twice.
COMPILED_TILE = 1 << 19
# Lanes more than a power of two: else all rows of a tile fall into the same few sets of the cache.
COMPILED_PAD = 16
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


def encode_eager(values: Tensor, row: QuantType, out: Tensor) -> None:
    """Fills uint8 `out [blocks, nbytes]` from `[blocks, block]` float32, float16 or bfloat16."""
    encoder = row.encoder()

    def encode(part: Tensor, into: Tensor) -> None:
        into.copy_(encoder(part.t().to(torch.float32).contiguous()).t())

    _spread(encode, values, out, EAGER_TILE // row.block)


def decode_eager(blocks: Tensor, row: QuantType, out: Tensor) -> None:
    """Fills `out [blocks, block]` of any float type from uint8 `[blocks, nbytes]`."""

    def decode(part: Tensor, into: Tensor) -> None:
        into.copy_(row.decode(part.t().contiguous()).t())

    _spread(decode, blocks, out, EAGER_TILE // row.block)


# One spread at a time: torch's number of threads belongs to the process.
_spreading = threading.Lock()


def _spread(
    work: Callable[[Tensor, Tensor], None], source: Tensor, out: Tensor, lanes: int
) -> None:
    """`work(part, into)` for each `lanes` rows of `source` and `out`, on torch's number of threads.

    A thread takes whole tiles and runs each operation alone: short operations on all threads meet
    some hundred times a tile and reach half the speed.
    """
    tiles = zip(source.split(lanes), out.split(lanes), strict=True)
    if source.shape[0] <= lanes or not _spreading.acquire(blocking=False):
        for part, into in tiles:
            work(part, into)
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

    count = torch.get_num_threads()
    try:
        threads = [
            threading.Thread(target=run, name="gpukit-tiles", daemon=True)
            for _ in range(min(count, MOST_THREADS))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        # What a thread has set for itself counts for every thread that begins later, too.
        torch.set_num_threads(count)
        _spreading.release()
    if failures:
        raise failures[0]


def encode_compiled(values: Tensor, row: QuantType, out: Tensor) -> None:
    """As `encode_eager`, through `torch.compile`."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    encode, lanes = row.encoder(), threads * (COMPILED_TILE // row.block + COMPILED_PAD)
    # Tiles of our own, made outside inference and gradient modes: the compiled code never sees
    # anything that it would have to be specialised for.
    with torch.inference_mode(False):
        tile = torch.zeros((lanes, row.block), dtype=values.dtype)
    for part, into in zip(values.split(lanes), out.split(lanes), strict=True):
        count = part.shape[0]
        with torch.inference_mode(False), torch.no_grad(), compiled_stages():
            tile[:count] = part
            x = tile.t().to(torch.float32) if row.block == 1 else _load(tile)
            blocks = encode(x)
        into.copy_(blocks[:, :count].t())


@stage
def _load(values: Tensor) -> Tensor:
    """float32 `[block, lanes]`: element i of every block side by side."""
    return values.t().to(torch.float32).contiguous()
