"""Q4_K: 256 values in 144 bytes, 4.5 bits a weight; eight groups of 32 with a 6-bit scale and min.

    bytes 0-1     d, fp16
    bytes 2-3     dmin, fp16
    bytes 4-15    scale and min of the groups, 6 bits each (bits.pack_scales6)
    bytes 16-143  byte 32 g + j: level j of group 2 g low, that of group 2 g + 1 high

x = (d * scale) * level - (dmin * min).
Source: block_q4_K, quantize_row_q4_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import unpack_scales6
from gpukit_kernels.bits_triton import load_byte_tl, store_words32_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.q4_k_triton import VECTORS, decode_kernel, few_kernel
from gpukit_kernels.search.affine import (
    WITH_IMPORTANCE,
    affine_search,
    affine_values,
    read_levels,
    root_mean_square,
    scales6,
    weighted_scales6,
)
from gpukit_kernels.search.affine_triton import affine_encode_tl, affine_values_tl, nibble_words_tl
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.stages import stage
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[144, lanes]`."""
    packed = blocks[16:].view(4, 1, 32, -1)
    levels = torch.cat([packed & 15, packed >> 4], dim=1).view(8, 32, -1)
    return affine_values(blocks, *unpack_scales6(blocks[4:16]), levels)


def encode(x: Tensor) -> Tensor:
    """Bytes `[144, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    elements = groups.transpose(0, 1)
    best, _ = affine_search(elements, root_mean_square(elements), 15, -1.0, 0.1, 20)
    head, steps = scales6(best)
    return torch.cat([head, _packed(read_levels(groups, best, steps, 15, False))])


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256)).view(8, 32, -1)
    best, weight = affine_search(
        groups.transpose(0, 1), weights.transpose(0, 1), 15, *WITH_IMPORTANCE
    )
    head, steps = weighted_scales6(best, weight)
    return torch.cat([head, _packed(read_levels(groups, best, steps, 15, True))])


@stage
def _packed(levels: Tensor) -> Tensor:
    levels = levels.to(torch.int32)
    return (levels[::2] | (levels[1::2] << 4)).to(torch.float32).view(128, -1)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    group = tl.arange(0, 8)[None, :, None]
    place = at[:, None, None] + 16 + group // 2 * 32 + tl.arange(0, 32)[None, None, :]
    byte = load_byte_tl(blocks, place, mask[:, None, None])  # [TILE, 8, 32]
    return affine_values_tl(blocks, at, (byte >> (group % 2 * 4)) & 15, mask)


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    words = affine_encode_tl(x, None, out, at, mask, 15, -1.0, 0.1, 20)
    store_words32_tl(out, at + 16, nibble_words_tl(words, x.shape[0]), mask)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 256]`."""
    words = affine_encode_tl(x, importance, out, at, mask, 15, -0.9, 0.05, 36)
    store_words32_tl(out, at + 16, nibble_words_tl(words, x.shape[0]), mask)


ROWS = (
    QuantType(
        FACTS["Q4_K"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            tile=16,
            aligned=decode_kernel,
            few=few_kernel,
            vectors=VECTORS,
        ),
        weighted=weighted,
    ),
)
