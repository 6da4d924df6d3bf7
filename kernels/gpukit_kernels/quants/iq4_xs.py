"""IQ4_XS: 256 values in 136 bytes, 4.25 bits a weight; eight groups of 32 with a 6-bit scale.

    bytes 0-1    d, fp16
    bytes 2-3    the high two bits of each group's scale plus 32, the first group's lowest
    bytes 4-7    byte j: the low four bits of scale 2 j low, those of scale 2 j + 1 high
    bytes 8-135  sixteen a group, byte j: level j low, level j + 16 high

x = (d * (scale - 32)) * CODEBOOK[level].
Source: block_iq4_xs, quantize_row_iq4_nl_impl in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_codebook_triton
from gpukit_kernels.bits import divide, half_bits, half_value, nearest_int, word_bytes
from gpukit_kernels.bits_triton import (
    half_bits_tl,
    inverse_tl,
    load_byte_tl,
    load_half_tl,
    nearest_int_tl,
    negated_tl,
    store_words32_tl,
)
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.lanes_triton import lanes_tl
from gpukit_kernels.pieces_triton import load_eight_tl
from gpukit_kernels.search.codebook import codebook_search, codebook_values, nearest_code
from gpukit_kernels.search.codebook_triton import (
    CODEBOOK_ASSEMBLY,
    CODEBOOK_WORDS,
    codebook_pair_tl,
    codebook_search_tl,
    codebook_values_tl,
    codebook_words_tl,
)
from gpukit_kernels.search.common import first_largest, importance_weights, scaled_squares
from gpukit_kernels.search.common_triton import (
    block_squares_tl,
    first_largest_tl,
    importance_weights_tl,
)
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[256, lanes]` of uint8 `[136, lanes]`."""
    scale = torch.stack([blocks[4:8] & 15, blocks[4:8] >> 4], dim=1).view(8, -1)
    high = torch.stack([(blocks[2 + g // 4] >> (2 * (g % 4))) & 3 for g in range(8)])
    step = half_value(blocks, 0) * ((scale | (high << 4)).to(torch.float32) - 32.0)
    packed = blocks[8:].view(8, 16, -1)
    levels = torch.cat([packed & 15, packed >> 4], dim=1)
    return (step[:, None] * codebook_values(levels)).view(256, -1)


def encode(x: Tensor) -> Tensor:
    """Bytes `[136, lanes]` of float32 `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    return _block(groups, codebook_search(groups.transpose(0, 1), None))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[256, lanes]`."""
    groups = x.view(8, 32, -1)
    weights = importance_weights(x, importance, scaled_squares(x, 2 / 256, 1)).view(8, 32, -1)
    return _block(groups, codebook_search(groups.transpose(0, 1), weights.transpose(0, 1)))


@stage
def _block(groups: Tensor, scale: Tensor) -> Tensor:
    top, _ = first_largest(scale)
    d = -top / torch.full_like(top, 32.0)
    # The steps are taken from d before it is rounded.
    code = nearest_int(_inverse(d) * scale).clamp(-32, 31)
    inverse = _inverse(d * code.to(torch.float32))
    level = nearest_code(inverse[:, None] * groups)
    code = code + 32
    high = torch.zeros_like(code[0])
    for g in range(8):
        high = high | ((code[g] >> 4) << (2 * g))
    low = (code[::2] & 15) | ((code[1::2] & 15) << 4)
    packed = (level[:, :16] | (level[:, 16:] << 4)).view(128, -1)
    head = [word_bytes(half_bits(d), 2), word_bytes(high, 2)]
    return torch.cat([*head, low.to(torch.float32), packed.to(torch.float32)])


def _inverse(v: Tensor) -> Tensor:
    return torch.where(v != 0, divide(1.0, v), torch.zeros_like(v))


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 256]` of the blocks at byte offsets `at`."""
    group = tl.arange(0, 8)[None, :]
    low = load_byte_tl(blocks, at[:, None] + 4 + group // 2, mask[:, None])
    high = load_byte_tl(blocks, at[:, None] + 2 + group // 4, mask[:, None])
    code = ((low >> (group % 2 * 4)) & 15) | (((high >> (group % 4 * 2)) & 3) << 4)
    step = load_half_tl(blocks, at, mask)[:, None] * (code.to(tl.float32) - 32.0)  # [TILE, 8]
    place = at[:, None, None] + 8 + group[:, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    byte = load_byte_tl(blocks, place, mask[:, None, None])
    low = step[:, :, None] * codebook_values_tl(byte & 15)
    high = step[:, :, None] * codebook_values_tl(byte >> 4)
    values = tl.permute(tl.join(low, high), (0, 1, 3, 2))  # [TILE, 8, 2, 16]
    return tl.reshape(values, (at.shape[0], 256))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 256]` as blocks at byte offsets `at`."""
    groups = lanes_tl(tl.reshape(x, (x.shape[0] * 8, 32)), 32)
    _store_tl(groups, codebook_search_tl(groups, None, 32), out, at, mask)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 256]`."""
    TILE: tl.constexpr = x.shape[0]
    groups = lanes_tl(tl.reshape(x, (TILE * 8, 32)), 32)
    variance = block_squares_tl(groups, TILE, 8, 32) * (2.0 / 256)
    weights = importance_weights_tl(x, importance, variance[:, None])
    weights = lanes_tl(tl.reshape(weights, (TILE * 8, 32)), 32)
    _store_tl(groups, codebook_search_tl(groups, weights, 32), out, at, mask)


@triton.jit
def _store_tl(groups, scale, out, at, mask):
    TILE: tl.constexpr = at.shape[0]
    scale = tl.reshape(scale, (TILE, 8))
    d = tl.div_rn(negated_tl(first_largest_tl(scale, 8)), tl.full((TILE,), 32.0, tl.float32))
    # The steps are taken from d before it is rounded.
    code = nearest_int_tl(inverse_tl(d)[:, None] * scale)
    code = tl.minimum(tl.maximum(code, -32), 31)
    inverse = tl.reshape(inverse_tl(d[:, None] * code.to(tl.float32)), (TILE * 8,))
    code = code + 32
    group = tl.arange(0, 8)[None, :]
    high = tl.sum((code >> 4) << (group * 2), axis=1)
    low = tl.sum((code & 15) << (group * 4), axis=1)
    head = (half_bits_tl(d).to(tl.int32) & 0xFFFF) | (high << 16)
    store_words32_tl(out, at, tl.join(head, low), mask)
    words = codebook_words_tl(groups, inverse)
    store_words32_tl(out, at + 8, tl.reshape(words, (TILE, 32)), mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    group = part // 2
    low = load_byte_tl(blocks, at + 4 + group // 2, mask) >> (group % 2 * 4)
    high = load_byte_tl(blocks, at + 2 + group // 4, mask) >> (group % 4 * 2)
    code = (low & 15) | ((high & 3) << 4)
    step = (load_half_tl(blocks, at, mask) * (code.to(tl.float32) - 32.0))[:, None]
    low, high = codebook_pair_tl(
        load_eight_tl(blocks, at + 8 + part * 8, mask), CODEBOOK_WORDS, CODEBOOK_ASSEMBLY
    )
    return step * low, step * high


ROWS = (
    QuantType(
        FACTS["IQ4_XS"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            pieces=Pieces(pieces_tl, 16, 2),
            tile=16,
            vectors=parts_codebook_triton.IQ4_XS,
        ),
        weighted=weighted,
    ),
)
