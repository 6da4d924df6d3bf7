"""Launches the Triton kernels of any type over whole tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.errors import QuantError
from gpukit_kernels.table import QuantType, TritonPair
from gpukit_kernels.triton_bits import load_float_tl, store_float_tl

# Values that a program decodes: with four warps sixteen a thread, enough loads in flight to hide
# the memory's latency.
DECODE_VALUES = 2048


@triton.jit
def encode_kernel(
    values,
    out,
    count,
    ENCODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """`count` rows of BLOCK values to blocks; a program encodes TILE of them."""
    # 64 bits to the program's first block, 32 from there: half the registers for addresses.
    first = tl.program_id(0).to(tl.int64) * TILE
    block = tl.arange(0, TILE)
    mask = block < count - first
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
    mask = block < count - first
    x = decode_blocks_tl(blocks + first * NBYTES, table, block * NBYTES, mask, DECODE)
    place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    store_float_tl(out + first * BLOCK + place, x, mask[:, None])


def encode_triton(values: Tensor, row: QuantType) -> Tensor:
    """uint8 `[blocks, nbytes]` of `[blocks, block]` float32, float16 or bfloat16."""
    pair = triton_pair(row)
    count = values.shape[0]
    out = torch.empty((count, row.nbytes), dtype=torch.uint8, device=values.device)
    if count:
        with torch.cuda.device_of(values):
            encode_kernel[(triton.cdiv(count, pair.tile),)](
                values.contiguous(),
                out,
                count,
                ENCODE=pair.encode,
                BLOCK=row.block,
                NBYTES=row.nbytes,
                TILE=pair.tile,
                enable_fp_fusion=False,
            )
    return out


def decode_triton(blocks: Tensor, row: QuantType, dtype: torch.dtype) -> Tensor:
    """`dtype` `[blocks, block]` of uint8 `[blocks, nbytes]`."""
    pair = triton_pair(row)
    count = blocks.shape[0]
    out = torch.empty((count, row.block), dtype=dtype, device=blocks.device)
    if count:
        tile = DECODE_VALUES // row.block
        with torch.cuda.device_of(blocks):
            decode_kernel[(triton.cdiv(count, tile),)](
                blocks.contiguous(),
                device_table(pair, blocks.device),
                out,
                count,
                DECODE=pair.decode,
                BLOCK=row.block,
                NBYTES=row.nbytes,
                TILE=tile,
                enable_fp_fusion=False,
            )
    return out


def device_table(pair: TritonPair, device: torch.device) -> Tensor | None:
    """The constants on `device` that `pair.decode` reads, None where it reads none."""
    return pair.table(device) if pair.table else None


def triton_pair(row: QuantType) -> TritonPair:
    """The row's Triton functions; `QuantError` for a type that has none."""
    if row.triton is None:
        raise QuantError(f"{row.name} has no Triton kernels")
    return row.triton
