"""BF16: two bytes a value, the upper half of binary32, rounded to even; NaN keeps its upper bits, quiet.

Source: ggml_compute_fp32_to_bf16 in llama.cpp's ggml-impl.h.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    return blocks.t().contiguous().view(torch.bfloat16).to(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[2, lanes]` of float32 `[1, lanes]`."""
    return _round(x[0])[:, None].view(torch.uint8).t()


@stage
def _round(v: Tensor) -> Tensor:
    bits = v.view(torch.int32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return torch.where(v != v, quiet, rounded).to(torch.int16)  # noqa: PLR0124  (NaN only)


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, 1]`: the value of each block; `pointer` uint8 `[TILE, 1]`."""
    word = tl.load((pointer + element).to(tl.pointer_type(tl.uint16)), mask=mask, other=0)
    return (word.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """Two bytes a value."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    mask = index < count
    x = tl.load(values + index, mask=mask, other=0.0).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    word = tl.where(x != x, quiet, rounded).to(tl.int16)
    tl.store(blocks.to(tl.pointer_type(tl.int16)) + index, word, mask=mask)


ROWS = (QuantType("BF16", 30, 1, 2, encode, decode, TritonPair(encode_kernel, decode_tl, 1024)),)
