"""Values and products of blocks on the CPU: torch tensors through compiled decoders.

A product decodes 256 values of 16 rows of W at a time into the first-level cache and multiplies
them with every row of x, sixteen rows of W side by side in a vector; sums are float32, of eight
parts for a single row of x. Threads share the rows of W.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from gpukit_kernels.cpu.program import Decoder

# Multiplications that a thread is worth.
SHARE = 1 << 17
# Parts of the rows of W that a thread takes, so that all end together.
PARTS = 2
# Blocks that a thread decodes at a time.
DECODED = 1 << 12


def decode(blocks: Tensor, decoder: Decoder, out: Tensor) -> None:
    """Fill contiguous float32 `out [blocks, block]` from contiguous uint8 `[blocks, nbytes]`."""
    nbytes, block = blocks.shape[1], out.shape[1]

    def part(start: int, stop: int) -> None:
        decoder.decode(
            blocks.data_ptr() + start * nbytes, stop - start, out.data_ptr() + start * block * 4
        )

    step = max(DECODED * 32 // block, 1)
    _share(part, len(blocks), step, len(blocks) * block)


def multiply(x: Tensor, blocks: Tensor, decoder: Decoder) -> Tensor:
    """float32 `[count, rows]`: float32 x `[count, n]` times the transpose of W, uint8
    `[rows, row_bytes]` whose rows are contiguous."""
    blocks = blocks if blocks.stride(1) == 1 else blocks.contiguous()
    (count, width), rows = x.shape, len(blocks)
    out = torch.empty((count, rows))
    panels = _panels(x, decoder.panel)
    row_bytes, begin = blocks.stride(0), blocks.data_ptr()
    end = begin + (rows - 1) * row_bytes + blocks.shape[1]

    def part(start: int, stop: int) -> None:
        decoder.multiply(
            begin + start * row_bytes, row_bytes, stop - start, width, end, panels.data_ptr(),
            count, out.data_ptr() + 4 * start, rows,
        )  # fmt: skip

    number = min(torch.get_num_threads(), max(count * rows * width // SHARE, 1)) * PARTS
    step = -(-rows // number)
    _share(part, rows, -(-step // decoder.lanes) * decoder.lanes, count * rows * width)
    return out


def _panels(x: Tensor, most: int) -> Tensor:
    """The rows of `x` in panels of `most`, then of the powers of two that are left, the elements
    of each panel one after the other."""
    parts, at = [], 0
    while at < len(x):
        size = min(most, 1 << (len(x) - at).bit_length() - 1)
        whole = (len(x) - at) // size if size == most else 1
        some = x[at : at + whole * size].view(whole, size, -1).transpose(1, 2)
        parts.append(some.reshape(-1))
        at += whole * size
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def _share(part: Callable[[int, int], None], count: int, step: int, work: int) -> None:
    """`part(start, stop)` for each `step` of `count`, on torch's number of threads where `work`
    multiplications are worth them."""
    threads = torch.get_num_threads()
    starts = range(0, count, step)
    if threads == 1 or len(starts) == 1 or work < 2 * SHARE:
        for start in starts:
            part(start, min(start + step, count))
        return
    waiting = iter(starts)

    def run() -> None:
        # The lock of the interpreter makes `next` whole.
        for start in waiting:
            part(start, min(start + step, count))

    others = [_pool(os.getpid(), threads).submit(run) for _ in range(min(threads, len(starts)) - 1)]
    run()
    for other in others:
        other.result()


@lru_cache(maxsize=2)
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="gpukit-products")
