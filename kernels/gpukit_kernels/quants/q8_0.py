"""Q8_0: 32 values in 34 bytes, 8.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-33   level 0-31, int8

x = d * level, d = max|x| / 127. Source: block_q8_0, quantize_row_q8_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.bits import divide, half_bits, half_value, round_away, word_bytes
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType, TritonPair
from gpukit_kernels.triton_bits import (
    inverse_tl,
    load_half_tl,
    round_away_tl,
    store_half_tl,
)


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[34, lanes]`."""
    return half_value(blocks, 0) * blocks[2:].view(torch.int8).to(torch.float32)


@stage
def encode(x: Tensor) -> Tensor:
    """uint8 `[34, lanes]` of float32 `[32, lanes]`."""
    magnitude = torch.zeros_like(x[0])
    for i in range(32):
        a = x[i].abs()
        magnitude = torch.where(magnitude > a, magnitude, a)
    d = magnitude / torch.full_like(magnitude, 127.0)
    inverse = torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))
    levels = round_away(x * inverse).to(torch.int32).to(torch.uint8)
    return torch.cat([word_bytes(half_bits(d), 2), levels])


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, n]`: values `element` `[1, n]` of the blocks at `pointer` `[TILE, 1]`."""
    level = tl.load(pointer + 2 + element, mask=mask, other=0).to(tl.int8, bitcast=True)
    return load_half_tl(pointer, mask) * level.to(tl.float32)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """A row of 32 values a block."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    element = tl.arange(0, 32)[None, :]  # [1, 32]
    mask = block < count
    x = tl.load(values + block[:, None] * 32 + element, mask=mask[:, None], other=0.0)
    x = x.to(tl.float32)  # [TILE, 32]
    magnitude = tl.max(tl.abs(x), 1)
    d = tl.div_rn(magnitude, tl.full(magnitude.shape, 127.0, tl.float32))
    level = round_away_tl(x * inverse_tl(d)[:, None])
    out = blocks + block * 34
    store_half_tl(out, d, mask)
    tl.store(out[:, None] + 2 + element, level.to(tl.uint8), mask=mask[:, None])


ROWS = (QuantType("Q8_0", 8, 32, 34, encode, decode, TritonPair(encode_kernel, decode_tl, 32)),)
