"""IQ4_NL: 32 values in 18 bytes, 4.5 bits a weight; levels are places in an uneven codebook.

    bytes 0-1    d, fp16
    bytes 2-17   byte j: level j low, level j + 16 high

x = d * CODEBOOK[level].
Source: block_iq4_nl, quantize_row_iq4_nl_impl in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels import parts_codebook_triton
from gpukit_kernels.bits import (
    divide,
    half_bits,
    half_value,
    pack_nibbles,
    unpack_nibbles,
    word_bytes,
)
from gpukit_kernels.bits_triton import (
    half_bits_tl,
    inverse_tl,
    load_half_tl,
    load_nibbles_tl,
    store_halves_tl,
    store_word16_tl,
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
from gpukit_kernels.search.common import importance_weights, scaled_squares
from gpukit_kernels.search.common_triton import importance_weights_tl, squares_tl
from gpukit_kernels.stages import stage
from gpukit_kernels.table import Pieces, QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[32, lanes]` of uint8 `[18, lanes]`."""
    return codebook_values(unpack_nibbles(blocks[2:])) * half_value(blocks, 0)


def encode(x: Tensor) -> Tensor:
    """Bytes `[18, lanes]` of float32 `[32, lanes]`."""
    return _block(x, codebook_search(x, None))


def weighted(x: Tensor, importance: Tensor, _: Tensor) -> Tensor:
    """`encode` with float32 `importance` `[32, lanes]`."""
    weights = importance_weights(x, importance, scaled_squares(x, 2 / 32, 1))
    return _block(x, codebook_search(x, weights))


@stage
def _block(x: Tensor, d: Tensor) -> Tensor:
    inverse = torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))
    levels = nearest_code(inverse * x)
    return torch.cat([word_bytes(half_bits(d), 2), pack_nibbles(levels)])


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 32]` of the blocks at byte offsets `at`."""
    number = codebook_values_tl(load_nibbles_tl(blocks, at + 2, mask))
    return number * load_half_tl(blocks, at, mask)[:, None]


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 32]` as blocks at byte offsets `at`."""
    lanes = lanes_tl(x, 32)
    _store_tl(lanes, codebook_search_tl(lanes, None, 32), out, at, mask)


@triton.jit
def weighted_tl(x, importance, _, out, at, mask):
    """`encode_tl` with float32 `importance` `[TILE, 32]`."""
    lanes = lanes_tl(x, 32)
    variance = squares_tl(lanes, 32) * (2.0 / 32)
    given = lanes_tl(importance, 32)
    weights = ()
    # Lane by lane: with a tile of weights ptxas spills (Triton 3.7.1).
    for i in tl.static_range(32):
        weights = weights + (importance_weights_tl(lanes[i], given[i], variance),)  # noqa: RUF005
    _store_tl(lanes, codebook_search_tl(lanes, weights, 32), out, at, mask)


@triton.jit
def _store_tl(lanes, d, out, at, mask):
    store_word16_tl(out, at, half_bits_tl(d), mask)
    store_halves_tl(out, at + 2, codebook_words_tl(lanes, inverse_tl(d)), mask)


@triton.jit
def pieces_tl(blocks, at, part, mask):
    """Values of the eight bytes number `part`: levels j and, 16 further, j + 16."""
    low, high = codebook_pair_tl(
        load_eight_tl(blocks, at + 2 + part * 8, mask), CODEBOOK_WORDS, CODEBOOK_ASSEMBLY
    )
    d = load_half_tl(blocks, at, mask)[:, None]
    return low * d, high * d


ROWS = (
    QuantType(
        FACTS["IQ4_NL"],
        encode,
        decode,
        TritonPair(
            encode_tl,
            decode_tl,
            weighted_tl,
            pieces=Pieces(pieces_tl, 16, 2),
            tile=128,
            vectors=parts_codebook_triton.IQ4_NL,
        ),
        weighted=weighted,
    ),
)
