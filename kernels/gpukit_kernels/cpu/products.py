"""Values and products of blocks on the CPU: torch tensors through compiled decoders.

A product decodes 256 values of 16 rows of W at a time and multiplies them with every row of x,
sixteen rows of W side by side in a vector; of one row of x the values stay in registers, for more
they lie in the first-level cache. A float type needs no such order: for one row of x its rows are
read from end to end, and a vector is elements of one. Sums are float32, of several parts for a
single row of x. Threads share the rows of W. Where the processor has tiles (AMX), many rows of x
go through them (`tiles.h`).
"""

from functools import cache

import torch
from torch import Tensor

from gpukit_kernels.cpu.plain import cpu_threads
from gpukit_kernels.cpu.program import Decoder, Pool

# Multiplications that are worth another thread's attention.
SHARE = 1 << 16
# Parts of the rows of W for each thread at most, so that all end together.
PARTS = 8
# Rows of x from which on a product goes through the processor's tiles, which take 32.
TILED = 16
# Values that a thread decodes at a time.
DECODED = 1 << 17


@cache
def _threads() -> int:
    return cpu_threads()


def decode(blocks: Tensor, decoder: Decoder, pool: Pool | None, out: Tensor) -> None:
    """Fill contiguous float32 `out [blocks, block]` from contiguous uint8 `[blocks, nbytes]`."""
    count, block = out.shape
    threads = _threads() if count * block > DECODED else 1
    step = max(DECODED // block // 256, 1) * 256
    decoder.decode(
        blocks.data_ptr(), count, out.data_ptr(), pool if threads > 1 else None, step, threads
    )


def multiply(x: Tensor, blocks: Tensor, decoder: Decoder, pool: Pool | None) -> Tensor:
    """float32 `[count, rows]`: float32 x `[count, n]` times the transpose of W, uint8
    `[rows, row_bytes]` whose rows are contiguous."""
    blocks = blocks if blocks.stride(1) == 1 else blocks.contiguous()
    (count, width), rows = x.shape, blocks.shape[0]
    out = torch.empty((count, rows))
    begin, row_bytes = blocks.data_ptr(), blocks.stride(0)
    end = begin + (rows - 1) * row_bytes + blocks.shape[1]
    work = count * width * rows
    threads = min(_threads(), max(work // SHARE, 1))
    parts = min(threads * PARTS, max(work // SHARE, 1))
    pool = pool if threads > 1 else None
    way, lanes = "multiply", decoder.lanes
    line = decoder.line * lanes
    if decoder.tiled and count >= TILED:
        way, lanes = "multiply_tiled", 2 * lanes
        given = _tiles(x, decoder, pool, threads)
    elif count == 1 and line and width % line == 0:
        way = "multiply_line"
        given = x.reshape(-1, decoder.lanes, decoder.line).transpose(1, 2).contiguous()
    else:
        given = _panels(x, decoder.panel)
    step = -(-rows // parts // lanes) * lanes
    decoder.multiply(
        begin, row_bytes, rows, width, end, given.data_ptr(), count, out.data_ptr(),
        pool, step, threads, way,
    )  # fmt: skip
    return out


def _tiles(x: Tensor, decoder: Decoder, pool: Pool | None, threads: int) -> Tensor:
    """bfloat16 `[blocks, steps, 2, 16, 32]`: the rows of `x` in tiles, see `tiles.h`."""
    (count, width), x = x.shape, x.contiguous()
    shape = ((count + 31) // 32 * 2, (width + 31) // 32, 2, 16, 32)
    out = torch.empty(shape, dtype=torch.bfloat16)
    decoder.tile(x.data_ptr(), count, width, out.data_ptr(), pool, threads)
    return out


def _panels(x: Tensor, most: int) -> Tensor:
    """The rows of `x` in panels of `most`, then of the powers of two that are left, the elements
    of each panel one after the other."""
    if x.shape[0] == 1:
        return x.contiguous()
    parts, at = [], 0
    while at < len(x):
        size = min(most, 1 << (len(x) - at).bit_length() - 1)
        whole = (len(x) - at) // size if size == most else 1
        some = x[at : at + whole * size].view(whole, size, -1).transpose(1, 2)
        parts.append(some.reshape(-1))
        at += whole * size
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
