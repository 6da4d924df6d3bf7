"""Q4_0: 32 values in 18 bytes, 4.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-17   byte j: level j low, level j + 16 high

x = d * (level - 8), d = the value of largest magnitude / -8.
Source: block_q4_0, quantize_row_q4_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_bits, half_value, pack_nibbles, unpack_nibbles, word_bytes
from gpukit_kernels.search import signed_levels
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[18, lanes]`."""
    levels = unpack_nibbles(blocks[2:]).to(torch.float32) - 8.0
    return levels * half_value(blocks, 0)


@stage
def encode(x: Tensor) -> Tensor:
    """uint8 `[18, lanes]` of float32 `[32, lanes]`."""
    d, levels = signed_levels(x, 8)
    return torch.cat([word_bytes(half_bits(d), 2), pack_nibbles(levels.to(torch.uint8))])


ROWS = (QuantType("Q4_0", 2, 32, 18, encode, decode),)
