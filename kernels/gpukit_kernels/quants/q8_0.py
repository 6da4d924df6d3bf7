"""Q8_0: 32 values in 34 bytes, 8.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-33   level 0-31, int8

x = d * level, d = max|x| / 127. Source: block_q8_0, quantize_row_q8_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, half_bits, half_value, round_away, word_bytes
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType


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


ROWS = (QuantType("Q8_0", 8, 32, 34, encode, decode),)
