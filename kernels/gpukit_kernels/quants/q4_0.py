"""Q4_0: 32 values in 18 bytes, 4.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-17   byte j: level j low, level j + 16 high

x = d * (level - 8), d = the value of largest magnitude / -8.
Source: block_q4_0, quantize_row_q4_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpukit_kernels.bits import half_bits, half_value, pack_nibbles, unpack_nibbles, word_bytes
from gpukit_kernels.search import signed_levels
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType, TritonPair
from gpukit_kernels.triton_bits import load_half_tl, pairs_tl, store_half_tl
from gpukit_kernels.triton_search import signed_levels_tl


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[18, lanes]`."""
    levels = unpack_nibbles(blocks[2:]).to(torch.float32) - 8.0
    return levels * half_value(blocks, 0)


@stage
def encode(x: Tensor) -> Tensor:
    """uint8 `[18, lanes]` of float32 `[32, lanes]`."""
    d, levels = signed_levels(x, 8)
    return torch.cat([word_bytes(half_bits(d), 2), pack_nibbles(levels.to(torch.uint8))])


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, n]`: values `element` `[1, n]` of the blocks at `pointer` `[TILE, 1]`."""
    byte = tl.load(pointer + 2 + element % 16, mask=mask, other=0).to(tl.int32)
    level = (byte >> (element // 16 * 4)) & 15
    return (level.to(tl.float32) - 8.0) * load_half_tl(pointer, mask)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """A row of 32 values a block."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    mask = block < count
    d, level = signed_levels_tl(values, block, mask, 8, TILE)
    low, high = pairs_tl(level, TILE, 16)
    out = blocks + block * 18
    store_half_tl(out, d, mask)
    byte = (low | (high << 4)).to(tl.uint8)  # [TILE, 16]
    tl.store(out[:, None] + 2 + tl.arange(0, 16)[None, :], byte, mask=mask[:, None])


ROWS = (QuantType("Q4_0", 2, 32, 18, encode, decode, TritonPair(encode_kernel, decode_tl, 32)),)
