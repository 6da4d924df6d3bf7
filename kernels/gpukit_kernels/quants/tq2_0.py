"""TQ2_0: 256 values in 66 bytes, 2.0625 bits a weight; levels 0, 1 and 2.

    bytes 0-63   32 for each half of 128 levels: byte j, levels j, 32 + j, 64 + j, 96 + j, two bits
                 each
    bytes 64-65  d, fp16

x = d * (level - 1), d = max|x|.
Source: block_tq2_0, quantize_row_tq2_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_value, pack_crumbs, unpack_crumbs
from gpukit_kernels.bits_triton import load_byte_tl, load_half_tl, store_bytes_tl, store_word16_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.ternary import ternary_levels, ternary_scale
from gpukit_kernels.search.ternary_triton import ternary_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[66, lanes]`."""
    return (unpack_crumbs(blocks[:64]).to(torch.float32) - 1.0) * half_value(blocks, 64)


def encode(x: Tensor) -> Tensor:
    """Bytes `[66, lanes]` of float32 `[256, lanes]`."""
    d, inverse = ternary_scale(x)
    return torch.cat([_levels(x, inverse), d])


@stage
def _levels(x: Tensor, inverse: Tensor) -> Tensor:
    return pack_crumbs(ternary_levels(x, inverse) & 3)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    value = tl.arange(0, 256)[None, :]
    byte = load_byte_tl(blocks, at[:, None] + value // 128 * 32 + value % 32, mask[:, None])
    level = ((byte >> (value // 32 % 4 * 2)) & 3).to(tl.float32)
    return (level - 1.0) * load_half_tl(blocks, at + 64, mask)[:, None]


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    TILE: tl.constexpr = x.shape[0]
    head, levels = ternary_tl(x)
    store_word16_tl(out, at + 64, head, mask)
    quarter = tl.arange(0, 4)[None, None, :, None]
    placed = (tl.reshape(levels, (TILE, 2, 4, 32)) & 3) << (2 * quarter)
    store_bytes_tl(out, at, tl.reshape(tl.sum(placed, axis=2), (TILE, 64)), mask)


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
        FACTS["TQ2_0"],
        encode,
        decode,
        TritonPair(encode_tl, decode_tl, pieces=Pieces(pieces_tl, 32, 4), tile=8),
    ),
)
