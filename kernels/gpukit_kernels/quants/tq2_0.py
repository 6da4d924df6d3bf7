"""TQ2_0: 256 values in 66 bytes, 2.0625 bits a weight; read only.

    bytes 0-63   32 for each half of 128 levels: byte j, levels j, 32 + j, 64 + j, 96 + j, two bits
                 each
    bytes 64-65  d, fp16

x = d * (level - 1).
Source: block_tq2_0, dequantize_row_tq2_0 in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_value
from gpukit_kernels.bits_triton import load_byte_tl, load_half_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[66, lanes]`."""
    packed = blocks[:64].view(2, 32, -1)
    levels = torch.stack([(packed >> (2 * k)) & 3 for k in range(4)], dim=1).view(256, -1)
    return (levels.to(torch.float32) - 1.0) * half_value(blocks, 64)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    value = tl.arange(0, 256)[None, :]
    byte = load_byte_tl(blocks, at[:, None] + value // 128 * 32 + value % 32, mask[:, None])
    level = ((byte >> (value // 32 % 4 * 2)) & 3).to(tl.float32)
    return (level - 1.0) * load_half_tl(blocks, at + 64, mask)[:, None]


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: four quarters of a half."""
    levels = load_eight_tl(blocks, at + part * 8, mask)
    d = load_half_tl(blocks, at + 64, mask)[:, None]
    values = ()
    for q in tl.static_range(4):
        value = (((levels >> (2 * q)) & 3).to(tl.float32) - 1.0) * d
        values = values + (value,)  # noqa: RUF005
    return values


ROWS = (
    QuantType(
        FACTS["TQ2_0"], None, decode, TritonPair(None, decode_tl, pieces=Pieces(pieces_tl, 32, 4))
    ),
)
