"""Q5_K: 256 values in 176 bytes, 5.5 bits a weight; eight groups of 32 with a 6-bit scale and min.

    bytes 0-1     d, fp16
    bytes 2-3     dmin, fp16
    bytes 4-15    scale and min of the groups, 6 bits each (bits.pack_scales6)
    bytes 16-47   byte j, bit g: bit 4 of level j of group g
    bytes 48-175  byte 32 g + j: low four bits of level j of group 2 g low, of group 2 g + 1 high

x = (d * scale) * level - (dmin * min).
Source: block_q5_K, quantize_row_q5_K_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import unpack_scales6
from gpukit_kernels.bits_triton import load_byte_tl, store_words32_tl
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.q4_k_triton import Q5_K_VECTORS, decode5_kernel
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
    """float32 `[256, lanes]` of uint8 `[176, lanes]`."""
    packed = blocks[48:].view(4, 1, 32, -1)
    low = torch.cat([packed & 15, packed >> 4], dim=1).view(8, 32, -1)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None, None]
    levels = low | (((blocks[None, 16:48] >> shifts) & 1) << 4)
    return affine_values(blocks, *unpack_scales6(blocks[4:16]), levels)


def encode(x: Tensor) -> Tensor:
    """Bytes `[176, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    elements = groups.transpose(0, 1)
    best, _ = affine_search(elements, root_mean_square(elements), 31, -0.5, 0.1, 15)
    head, steps = scales6(best)
    return torch.cat([head, *_packed(read_levels(groups, best, steps, 31, False))])


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    weights = importance_weights(x, importance, scaled_squares(x, 2.0, 256)).view(8, 32, -1)
    best, weight = affine_search(
        groups.transpose(0, 1), weights.transpose(0, 1), 31, *WITH_IMPORTANCE
    )
    head, steps = weighted_scales6(best, weight, 63)
    return torch.cat([head, *_packed(read_levels(groups, best, steps, 31, True))])


@stage
def _packed(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The fifth bits, bytes `[32, lanes]`, and the low four, `[128, lanes]`."""
    levels = levels.to(torch.int32)
    high = torch.zeros_like(levels[0])
    for g in range(8):
        high = high | ((levels[g] >> 4) << g)
    low = levels & 15
    packed = low[::2] | (low[1::2] << 4)
    return high.to(torch.float32), packed.to(torch.float32).view(128, -1)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    group = tl.arange(0, 8)[None, :, None]
    place = at[:, None, None] + tl.arange(0, 32)[None, None, :]
    low = load_byte_tl(blocks, place + 48 + group // 2 * 32, mask[:, None, None])  # [TILE, 8, 32]
    high = load_byte_tl(blocks, place + 16, mask[:, None, None])  # [TILE, 1, 32]
    levels = ((low >> (group % 2 * 4)) & 15) | (((high >> group) & 1) << 4)
    return affine_values_tl(blocks, at, levels, mask)


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    words = affine_encode_tl(x, None, out, at, mask, 31, -0.5, 0.1, 15)
    _store_levels_tl(words, out, at, mask)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 256]`."""
    words = affine_encode_tl(x, importance, out, at, mask, 31, -0.9, 0.05, 36)
    _store_levels_tl(words, out, at, mask)


@triton.jit
def _store_levels_tl(words, out, at, mask):
    TILE: tl.constexpr = at.shape[0]
    high = tl.reshape((words >> 4) & 0x01010101, (TILE, 8, 8)) << tl.arange(0, 8)[None, :, None]
    store_words32_tl(out, at + 16, tl.sum(high, axis=1), mask)
    store_words32_tl(out, at + 48, nibble_words_tl(words & 0x0F0F0F0F, TILE), mask)


ROWS = (
    QuantType(
        FACTS["Q5_K"],
        encode,
        decode,
        TritonPair(
            encode_tl, decode_tl, weighted_tl, aligned=decode5_kernel, tile=16, vectors=Q5_K_VECTORS
        ),
        weighted=weighted,
    ),
)
