"""F32: four bytes a value, IEEE binary32, little endian."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[4, lanes]`."""
    return blocks.t().contiguous().view(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[4, lanes]` of float32 `[1, lanes]`: the bits, NaN payloads included."""
    return x.t().contiguous().view(torch.uint8).t()


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, 1]`: the value of each block; `pointer` uint8 `[TILE, 1]`."""
    return tl.load(pointer.to(tl.pointer_type(tl.float32)) + element, mask=mask, other=0.0)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """Four bytes a value."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    mask = index < count
    x = tl.load(values + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(blocks.to(tl.pointer_type(tl.float32)) + index, x, mask=mask)


ROWS = (QuantType("F32", 0, 1, 4, encode, decode, TritonPair(encode_kernel, decode_tl, 1024)),)
