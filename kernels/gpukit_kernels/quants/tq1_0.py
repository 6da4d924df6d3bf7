"""TQ1_0: 256 values in 54 bytes, 1.6875 bits a weight; levels 0, 1 and 2.

    bytes 0-31   byte j: levels j, j + 32, ..., j + 128
    bytes 32-47  byte j: levels 160 + j, 176 + j, ..., 224 + j
    bytes 48-51  byte j: levels 240 + j, 244 + j, 248 + j, 252 + j
    bytes 52-53  d, fp16

x = d * (level - 1), d = max|x|. A byte is a fraction, out of 256, whose digits to the base 3 are
the levels: level n is the whole part of 3 * (byte * 3^n mod 256) / 256.
Source: block_tq1_0, quantize_row_tq1_0_ref, dequantize_row_tq1_0 in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_value
from gpukit_kernels.bits_triton import load_byte_tl, load_half_tl, store_bytes_tl, store_word16_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.search.ternary import ternary_scale, ternary_signs
from gpukit_kernels.search.ternary_triton import ternary_tl
from gpukit_kernels.stages import stage
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


def encode(x: Tensor) -> Tensor:
    """Bytes `[54, lanes]` of float32 `[256, lanes]`."""
    d, inverse = ternary_scale(x)
    return torch.cat([_levels(x, inverse), d])


@stage
def _levels(x: Tensor, inverse: Tensor) -> Tensor:
    signs = ternary_signs(x, inverse)
    parts = (signs[:160].view(5, 32, -1), signs[160:240].view(5, 16, -1))
    return torch.cat([_fractions(part) for part in (*parts, signs[240:].view(4, 4, -1))])


def _fractions(signs: Tensor) -> Tensor:
    """Bytes `[n, lanes]` of levels less one, int32 `[5, n, lanes]`, or of four, behind which stands
    a level 0."""
    number = signs[0]
    for sign in signs[1:]:
        number = number * 3 + sign
    # The levels' number to the base 3 is that of as many ones more.
    number = number + 121 if len(signs) == 5 else number * 3 + 120
    # 256 / 243 of the low byte, rounded up; a product and a shift are the division for any byte.
    return ((((number & 0xFF) * 69042 + 65535) >> 16) & 0xFF).to(torch.float32)


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


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    TILE: tl.constexpr = x.shape[0]
    head, levels = ternary_tl(x)
    store_word16_tl(out, at + 52, head, mask)
    # Each level times what its digit counts; a byte is the sum of its own.
    value = tl.arange(0, 256)[None, :]
    digit = tl.where(value < 160, value // 32, value // 16 - 10)
    digit = tl.where(value < 240, digit, value // 4 - 60)
    power = tl.where(digit == 0, 81, tl.where(digit == 1, 27, 9))
    power = tl.where(digit == 3, 3, tl.where(digit == 4, 1, power))
    sixteens = tl.reshape(levels * power, (TILE, 16, 16))
    row = tl.arange(0, 16)[None, :, None]
    # Sixteens 0, 2, ..., 8 are bytes 0 to 15, 1, 3, ..., 9 bytes 16 to 31, 10 to 14 the next.
    first = tl.sum(tl.where((row < 10) & (row % 2 == 0), sixteens, 0), axis=1)
    second = tl.sum(tl.where((row < 10) & (row % 2 == 1), sixteens, 0), axis=1)
    third = tl.sum(tl.where((row >= 10) & (row < 15), sixteens, 0), axis=1)
    last = tl.reshape(tl.sum(tl.where(row == 15, sixteens, 0), axis=1), (TILE, 4, 4))
    store_bytes_tl(out, at, _fractions_tl(first), mask)
    store_bytes_tl(out, at + 16, _fractions_tl(second), mask)
    store_bytes_tl(out, at + 32, _fractions_tl(third), mask)
    store_bytes_tl(out, at + 48, _fractions_tl(tl.sum(last, axis=1)), mask)


@triton.jit
def _fractions_tl(number):
    """int32 0..255: _fractions of numbers of five digits, of which the low byte counts."""
    number = number & 0xFF
    return (number + (((number * 13 + 242) * 1079) >> 18)) & 0xFF


ROWS = (QuantType(FACTS["TQ1_0"], encode, decode, TritonPair(encode_tl, decode_tl, tile=8)),)
