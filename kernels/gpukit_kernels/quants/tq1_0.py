"""TQ1_0: 256 values in 54 bytes, 1.6875 bits a weight; read only.

    bytes 0-31   byte j: levels j, j + 32, ..., j + 128
    bytes 32-47  byte j: levels 160 + j, 176 + j, ..., 224 + j
    bytes 48-51  byte j: levels 240 + j, 244 + j, 248 + j, 252 + j
    bytes 52-53  d, fp16

x = d * (level - 1). A byte is a fraction, out of 256, whose digits to the base 3 are the levels:
level n is the whole part of 3 * (byte * 3^n mod 256) / 256.
Source: block_tq1_0, dequantize_row_tq1_0 in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_value
from gpukit_kernels.bits_triton import load_byte_tl, load_half_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[54, lanes]`."""
    parts = (_digits(blocks[:32], 5), _digits(blocks[32:48], 5), _digits(blocks[48:52], 4))
    return torch.cat(parts) * half_value(blocks, 52)


def _digits(packed: Tensor, count: int) -> Tensor:
    """float32 `[count * n, lanes]`: the first `count` levels of uint8 `[n, lanes]`, less one."""
    digits = []
    for _ in range(count):
        # Numbers of eight bits: a product drops what is above the point.
        digits.append((packed.to(torch.int16) * 3 >> 8).to(torch.float32) - 1.0)
        packed = packed * 3
    return torch.cat(digits)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    value = tl.arange(0, 256)[None, :]
    # Of the three parts: the number of the byte, and of the digit.
    first = value < 160
    second = value < 240
    byte = tl.where(first, value % 32, tl.where(second, 32 + value % 16, 48 + value % 4))
    digit = tl.where(first, value // 32, tl.where(second, value // 16 - 10, value // 4 - 60))
    power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, 9))
    power = tl.where(digit == 3, 27, tl.where(digit == 4, 81, power))
    fraction = (load_byte_tl(blocks, at[:, None] + byte, mask[:, None]) * power) & 0xFF
    level = ((fraction * 3) >> 8).to(tl.float32)
    return (level - 1.0) * load_half_tl(blocks, at + 52, mask)[:, None]


ROWS = (QuantType(FACTS["TQ1_0"], None, decode, TritonPair(None, decode_tl)),)
