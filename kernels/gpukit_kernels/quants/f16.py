"""F16: two bytes a value, IEEE binary16, little endian; rounded to even, NaN becomes 0x7E00 plus sign.

Source: ggml_compute_fp32_to_fp16 in llama.cpp's ggml-impl.h.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.bits import half_bits
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType, TritonPair
from gpukit_kernels.triton_bits import half_bits_tl, load_half_tl


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    return blocks.t().contiguous().view(torch.float16).to(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[2, lanes]` of float32 `[1, lanes]`."""
    return _round(x[0])[:, None].view(torch.uint8).t()


@stage
def _round(v: Tensor) -> Tensor:
    return half_bits(v).to(torch.int16)


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, 1]`: the value of each block; `pointer` uint8 `[TILE, 1]`."""
    return load_half_tl(pointer + element, mask)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """Two bytes a value."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    mask = index < count
    x = tl.load(values + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(blocks.to(tl.pointer_type(tl.int16)) + index, half_bits_tl(x), mask=mask)


ROWS = (QuantType("F16", 1, 1, 2, encode, decode, TritonPair(encode_kernel, decode_tl, 1024)),)
