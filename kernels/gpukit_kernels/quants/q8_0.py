"""Q8_0: 32 values in 34 bytes, 8.5 bits a weight.

    bytes 0-1    d, fp16
    bytes 2-33   level 0-31, int8

x = d * level, d = max|x| / 127.
Source: block_q8_0, quantize_row_q8_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_triton
from gpukit_kernels.bits import divide, half_bits, half_value, round_away, word_bytes
from gpukit_kernels.bits_triton import (
    divide_tl,
    given_half_bits_tl,
    inverse_tl,
    load_byte_tl,
    load_half_tl,
    signed_byte_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import byte_lanes_tl, store_behind_half_tl
from gpukit_kernels.search.common import largest_magnitude
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[34, lanes]`."""
    return half_value(blocks, 0) * blocks[2:].view(torch.int8).to(torch.float32)


def encode(x: Tensor) -> Tensor:
    """Bytes `[34, lanes]` of float32 `[32, lanes]`."""
    d, inverse = _scale(x)
    return torch.cat([d, _levels(x, inverse)])


@stage
def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """d, bytes `[2, lanes]`, and 1 / d or zero."""
    magnitude = largest_magnitude(x)
    d = magnitude / torch.full_like(magnitude, 127.0)
    inverse = torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))
    return word_bytes(half_bits(d), 2), inverse


@stage
def _levels(x: Tensor, inverse: Tensor) -> Tensor:
    return (round_away(x * inverse) & 0xFF).to(torch.float32)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    # A thread has four levels in a row: one address, and one look at the scale.
    place = at[:, None] + 2 + 4 * tl.arange(0, 8)[None, :]
    masked = mask[:, None]
    first = tl.join(load_byte_tl(blocks, place, masked), load_byte_tl(blocks, place + 2, masked))
    second = tl.join(
        load_byte_tl(blocks, place + 1, masked), load_byte_tl(blocks, place + 3, masked)
    )
    level = signed_byte_tl(tl.reshape(tl.join(first, second), (at.shape[0], 32)))
    return load_half_tl(blocks, at, mask)[:, None] * level.to(tl.float32)


@triton.jit
def encode_tl(x, out, at, mask):
    """Store a tuple of 32 float32 `[TILE]` as blocks at byte offsets `at`."""
    largest = tl.zeros_like(x[0])
    for i in tl.static_range(32):
        # The C's maximum forgets what came before a NaN.
        largest = tl.where(largest > tl.abs(x[i]), largest, tl.abs(x[i]))
    d = divide_tl(largest, tl.full((1,), 127.0, tl.float32))
    inverse = inverse_tl(d)
    # The C converts what an infinite 1 / d gives, and any NaN, to a number whose low byte is 0.
    inverse = tl.where(inverse < float("inf"), inverse, 0.0)
    levels = ()
    for i in tl.static_range(32):
        levels = levels + (_level_tl(x[i] * inverse),)  # noqa: RUF005
    head = given_half_bits_tl(d).to(tl.int32)
    store_behind_half_tl(out, at, head, byte_lanes_tl(levels, 8), mask, 8)


@triton.jit
def _level_tl(v):
    """int32: the low byte of `v` rounded, halves away from zero; 0 of what is no int32."""
    # Only beside a NaN is a value far above the largest.
    v = tl.where(tl.abs(v) < 2147483648.0, v, 0.0)
    # The largest float below a half, with the sign of v, is added.
    half = (v.to(tl.int32, bitcast=True) & -0x80000000) | 0x3EFFFFFF
    return (v + half.to(tl.float32, bitcast=True)).to(tl.int32) & 0xFF


ROWS = (
    QuantType(
        FACTS["Q8_0"],
        encode,
        decode,
        TritonPair(encode_tl, decode_tl, tile=128, lanes=True, vectors=parts_triton.Q8_0),
    ),
)
