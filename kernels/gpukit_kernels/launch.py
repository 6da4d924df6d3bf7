"""Launches the Triton kernels of any type over whole tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpukit_kernels.bits_triton import divide_tl, load_float_tl, store_float_tl
from gpukit_kernels.errors import QuantError
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import load_lanes_tl
from gpukit_kernels.nearest_triton import encode_nearest
from gpukit_kernels.pieces_triton import pieces_kernel
from gpukit_kernels.table import Pieces, QuantType, TritonPair
from gpukit_kernels.verified import sample, verified

# Values that a program decodes: with four warps sixteen a thread, enough loads in flight to hide
# the memory's latency.
DECODE_VALUES = 2048
# Pieces of eight bytes that a program takes, one a thread.
PIECES = 128

# 2^23 as float32: or'd with a whole number below 2^23 it is 2^23 more. Kernels of one type take it
# as an argument, since of two constants ptxas makes two instructions.
MAGIC = 0x4B000000


@triton.jit
def encode_kernel(
    values,
    out,
    count,
    ENCODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
    LANES: tl.constexpr,
):
    """`count` rows of BLOCK values to blocks; a program encodes TILE of them.

    ENCODE takes a tuple of 32 lanes where LANES, else a tile.
    """
    # 64 bits to the program's first block, 32 from there: half the registers for addresses.
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    if LANES:
        x = load_lanes_tl(values + first * BLOCK, block * BLOCK, mask)
    else:
        place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # [TILE, BLOCK]
        x = load_float_tl(values + first * BLOCK + place, mask[:, None])
    ENCODE(x, out + first * NBYTES, block * NBYTES, mask)


@triton.jit
def decode_blocks_tl(blocks, table, at, mask, DECODE: tl.constexpr):
    """float32 `[TILE, block]`: DECODE of the blocks at `at`; `table` is None if it takes none."""
    return DECODE(blocks, at, mask) if table is None else DECODE(blocks, at, mask, table)


@triton.jit
def decode_kernel(
    blocks,
    table,
    out,
    count,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """`count` blocks to values; a program decodes TILE of them."""
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    x = decode_blocks_tl(blocks + first * NBYTES, table, block * NBYTES, mask, DECODE)
    place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    store_float_tl(out + first * BLOCK + place, x, mask[:, None])


@triton.jit
def weighted_kernel(
    values,
    importance,
    means,
    out,
    count,
    row_blocks,
    part_blocks,
    ENCODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """As `encode_kernel` with importance: a row of it for each `part_blocks` blocks of values.

    `means` holds the mean square of each row of `row_blocks` blocks, or is None.
    """
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    mask = block < tl.minimum(count - first, TILE).to(tl.int32)
    element = tl.arange(0, BLOCK)[None, :]
    x = load_float_tl(values + first * BLOCK + block[:, None] * BLOCK + element, mask[:, None])
    row = (first + block) // row_blocks
    column = (first + block) // part_blocks * row_blocks + (first + block) % row_blocks
    place = importance + column[:, None] * BLOCK + element
    weights = tl.load(place, mask=mask[:, None], other=0.0)
    mean = None if means is None else tl.load(means + row, mask=mask, other=0.0)
    ENCODE(x, weights, mean, out + first * NBYTES, block * NBYTES, mask)


@triton.jit
def mean_squares_kernel(values, out, rows, width, ROWS: tl.constexpr):
    """The mean of x * x over each of `rows` rows, added up from the first value on."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < rows
    total = tl.zeros((ROWS,), tl.float32)
    for column in range(width):
        x = load_float_tl(values + row * width + column, mask)
        total = total + x * x
    tl.store(out + row, divide_tl(total, tl.zeros_like(total) + width), mask=mask)


# Rows that a program of `mean_squares_kernel` adds up, one a lane.
MEAN_ROWS = 32


def encode_triton(values: Tensor, row: QuantType, importance: Tensor | None = None) -> Tensor:
    """uint8 `[blocks, nbytes]` of `[..., n]` float32, float16 or bfloat16.

    `importance` is float32 `[n]`, or `[experts, n]` for `[experts, rows, n]`: one launch for all.
    """
    pair = triton_pair(row)
    count = values.numel() // row.block
    out = torch.empty((count, row.nbytes), dtype=torch.uint8, device=values.device)
    if not count:
        return out
    values = values.contiguous()
    shape = {"BLOCK": row.block, "NBYTES": row.nbytes, "enable_fp_fusion": False}
    with torch.cuda.device_of(values):
        if pair.nearest:
            encode_nearest(values, row, importance, out)
            return out
        if importance is None:
            encode_kernel[(triton.cdiv(count, pair.tile),)](
                values, out, count, ENCODE=pair.encode, TILE=pair.tile, LANES=pair.lanes, **shape
            )
            return out
        tile = pair.weighted_tile or pair.tile
        width = values.shape[-1]
        weighted_kernel[(triton.cdiv(count, tile),)](
            values,
            importance.contiguous(),
            _mean_squares(values) if row.row_mean else None,
            out,
            count,
            width // row.block,
            count // (importance.numel() // width),
            ENCODE=pair.weighted,
            TILE=tile,
            **shape,
        )
    return out


def _mean_squares(values: Tensor) -> Tensor:
    rows = values.numel() // values.shape[-1]
    out = torch.empty(rows, dtype=torch.float32, device=values.device)
    mean_squares_kernel[(triton.cdiv(rows, MEAN_ROWS),)](
        values, out, rows, values.shape[-1], ROWS=MEAN_ROWS, num_warps=1, enable_fp_fusion=False
    )
    return out


def decode_triton(blocks: Tensor, row: QuantType, dtype: torch.dtype) -> Tensor:
    """`dtype` `[blocks, block]` of uint8 `[blocks, nbytes]`."""
    out = torch.empty((len(blocks), row.block), dtype=dtype, device=blocks.device)
    if len(blocks):
        blocks = blocks.contiguous()
        with torch.cuda.device_of(blocks):
            decode = quick_decoder(blocks, row) or _decode_plainly
            if decode is not _decode_plainly and not decodes(row, dtype, blocks.device):
                decode = _decode_plainly
            decode(blocks, row, out)
    return out


def decodes(row: QuantType, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the type's own kernel on `device` gives the reference's values, as `verified.py`
    has it; of what is no GPU that is not asked."""
    return device.type != "cuda" or decoder_verified(row, dtype, device)


def decoder_verified(row: QuantType, dtype: torch.dtype, device: torch.device) -> bool:
    """As `decodes`, for any device."""
    blocks, values = sample(row, 16, 1024)

    def got() -> Tensor:
        given = blocks.to(device).view(-1, row.nbytes)
        out = torch.empty((len(given), row.block), dtype=dtype, device=device)
        decode = quick_decoder(given, row)
        assert decode
        decode(given, row, out)
        return out.view(values.shape)

    name = f"decoding to {str(dtype).removeprefix('torch.')}"
    return verified(name, row.name, device, got, lambda: values.to(dtype))


Decode = Callable[[Tensor, QuantType, Tensor], None]


def quick_decoder(blocks: Tensor, row: QuantType) -> Decode | None:
    """What fills values `[blocks, block]` by a kernel of the type's own; None where it has none."""
    pair = triton_pair(row)
    if pair.aligned and blocks.data_ptr() % 4 == 0:
        return _decode_aligned
    return _decode_pieces if pair.pieces else None


def _decode_aligned(blocks: Tensor, row: QuantType, out: Tensor) -> None:
    tile = DECODE_VALUES // row.block
    triton_pair(row).aligned[(triton.cdiv(len(blocks), tile),)](
        blocks, out, len(blocks), MAGIC, TILE=tile, enable_fp_fusion=False
    )


def _decode_pieces(blocks: Tensor, row: QuantType, out: Tensor) -> None:
    pieces = triton_pair(row).pieces
    assert pieces
    shape = piece_constants(row, pieces)
    pieces_kernel[(triton.cdiv(len(blocks), shape["TILE"]),)](
        blocks,
        device_table(pieces, blocks.device),
        out,
        len(blocks),
        **shape,
        enable_fp_fusion=False,
    )


def _decode_plainly(blocks: Tensor, row: QuantType, out: Tensor) -> None:
    pair = triton_pair(row)
    tile = DECODE_VALUES // row.block
    decode_kernel[(triton.cdiv(len(blocks), tile),)](
        blocks,
        device_table(pair, blocks.device),
        out,
        len(blocks),
        DECODE=pair.decode,
        BLOCK=row.block,
        NBYTES=row.nbytes,
        TILE=tile,
        enable_fp_fusion=False,
    )


def piece_constants(row: QuantType, pieces: Pieces) -> dict[str, Any]:
    """The constants of `pieces_kernel` for blocks of `row`."""
    return {
        "PIECES": pieces.pieces,
        "SPAN": pieces.span,
        "COUNT": pieces.count,
        "BLOCK": row.block,
        "NBYTES": row.nbytes,
        "TILE": PIECES * 8 * pieces.count // row.block,
    }


def device_table(pair: TritonPair | Pieces, device: torch.device) -> Tensor | None:
    """The constants on `device` that `pair` decodes with, None where there are none."""
    return pair.table(device) if pair.table else None


def triton_pair(row: QuantType) -> TritonPair:
    """The row's Triton functions; `QuantError` for a type that has none."""
    if row.triton is None:
        raise QuantError(f"{row.name} has no Triton kernels")
    return row.triton
