"""Launches the Triton kernels of any type over whole tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.errors import QuantError
from gpukit_kernels.table import QuantType, TritonPair

# Values that a program decodes: with four warps eight a thread, enough loads in flight.
DECODE_VALUES = 1024


@triton.jit
def decode_kernel(
    blocks,
    out,
    count,
    DECODE: tl.constexpr,
    BLOCK: tl.constexpr,
    NBYTES: tl.constexpr,
    TILE: tl.constexpr,
):
    """`count` blocks to values; a program decodes `TILE` blocks."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]  # [TILE, 1]
    element = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    mask = (block < count) & (element < BLOCK)
    x = DECODE(blocks + block * NBYTES, element, mask)
    tl.store(out + block * BLOCK + element, x.to(out.dtype.element_ty), mask=mask)


def encode_triton(values: Tensor, row: QuantType) -> Tensor:
    """uint8 `[blocks, nbytes]` of `[blocks, block]` float32, float16 or bfloat16."""
    pair = _pair(row)
    values = values.contiguous()
    count = values.shape[0]
    out = torch.empty((count, row.nbytes), dtype=torch.uint8, device=values.device)
    if count:
        grid = (triton.cdiv(count, pair.tile),)
        pair.encode[grid](
            values,
            out,
            count,
            TILE=pair.tile,
            num_warps=pair.warps,
            enable_fp_fusion=False,
        )
    return out


def decode_triton(blocks: Tensor, row: QuantType, dtype: torch.dtype) -> Tensor:
    """`dtype` `[blocks, block]` of uint8 `[blocks, nbytes]`."""
    pair = _pair(row)
    blocks = blocks.contiguous()
    count = blocks.shape[0]
    out = torch.empty((count, row.block), dtype=dtype, device=blocks.device)
    if count:
        tile = DECODE_VALUES // row.block
        decode_kernel[(triton.cdiv(count, tile),)](
            blocks,
            out,
            count,
            DECODE=pair.decode,
            BLOCK=row.block,
            NBYTES=row.nbytes,
            TILE=tile,
            enable_fp_fusion=False,
        )
    return out


def _pair(row: QuantType) -> TritonPair:
    if row.triton is None:
        raise QuantError(f"{row.name} has no Triton kernels")
    return row.triton
