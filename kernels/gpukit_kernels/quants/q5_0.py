"""Q5_0: 32 values in 22 bytes, 5.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-5    bit j: bit 4 of level j, little endian
    bytes 6-21   byte j: low four bits of level j low, those of level j + 16 high

x = d * (level - 16), d = the value of largest magnitude / -16.
Source: block_q5_0, quantize_row_q5_0_ref in llama.cpp's ggml-quants.c.
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
    """float32 `[32, lanes]` of uint8 `[22, lanes]`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[None, :, None]
    high = ((blocks[2:6, None] >> shifts) & 1).reshape(32, -1)
    levels = (unpack_nibbles(blocks[6:]) | (high << 4)).to(torch.float32) - 16.0
    return levels * half_value(blocks, 0)


@stage
def encode(x: Tensor) -> Tensor:
    """uint8 `[22, lanes]` of float32 `[32, lanes]`."""
    d, levels = signed_levels(x, 16)
    high = torch.zeros_like(levels[0])
    for j in range(32):
        high = high | ((levels[j] >> 4) << j)
    low = pack_nibbles((levels & 15).to(torch.uint8))
    return torch.cat([word_bytes(half_bits(d), 2), word_bytes(high, 4), low])


@triton.jit
def decode_tl(pointer, element, mask):
    """float32 `[TILE, n]`: values `element` `[1, n]` of the blocks at `pointer` `[TILE, 1]`."""
    byte = tl.load(pointer + 6 + element % 16, mask=mask, other=0).to(tl.int32)
    bits = tl.load(pointer + 2 + element // 8, mask=mask, other=0).to(tl.int32)
    level = ((byte >> (element // 16 * 4)) & 15) | (((bits >> (element % 8)) & 1) << 4)
    return (level.to(tl.float32) - 16.0) * load_half_tl(pointer, mask)


@triton.jit
def encode_kernel(values, blocks, count, TILE: tl.constexpr):
    """A row of 32 values a block."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)  # [TILE]
    mask = block < count
    d, level = signed_levels_tl(values, block, mask, 16, TILE)
    bits = tl.sum((level >> 4) << tl.arange(0, 32)[None, :], 1)  # [TILE]
    low, high = pairs_tl(level & 15, TILE, 16)
    out = blocks + block * 22
    store_half_tl(out, d, mask)
    words = out.to(tl.pointer_type(tl.int16))
    tl.store(words + 1, bits.to(tl.int16), mask=mask)
    tl.store(words + 2, (bits >> 16).to(tl.int16), mask=mask)
    byte = (low | (high << 4)).to(tl.uint8)  # [TILE, 16]
    tl.store(out[:, None] + 6 + tl.arange(0, 16)[None, :], byte, mask=mask[:, None])


ROWS = (QuantType("Q5_0", 6, 32, 22, encode, decode, TritonPair(encode_kernel, decode_tl, 32)),)
