"""Q5_0: 32 values in 22 bytes, 5.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-5    bit j: bit 4 of level j, little endian
    bytes 6-21   byte j: low four bits of level j low, those of level j + 16 high

x = d * (level - 16), d = the value of largest magnitude / -16.
Source: block_q5_0, quantize_row_q5_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_bits, half_value, pack_nibbles, unpack_nibbles, word_bytes
from gpukit_kernels.search import signed_levels
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


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


ROWS = (QuantType("Q5_0", 6, 32, 22, encode, decode),)
