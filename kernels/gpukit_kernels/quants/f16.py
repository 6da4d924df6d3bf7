"""F16: two bytes a value, IEEE binary16, little endian, rounded to even.

A NaN becomes 0x7E00 plus its sign.

Source: ggml_compute_fp32_to_fp16 in llama.cpp's ggml-impl.h.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import half_bits, half_value
from gpukit_kernels.bits_triton import given_half_bits_tl, store_word16_tl
from gpukit_kernels.cpu.trace import is_tracing
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    if is_tracing():
        return half_value(blocks, 0)[None]
    return blocks.t().contiguous().view(torch.float16).to(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """Bytes `[2, lanes]` of float32 `[1, lanes]`."""
    return _round(x[0])[:, None].view(torch.uint8).t()


def _round(v: Tensor) -> Tensor:
    return half_bits(v).to(torch.int16)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 1]` of the blocks at byte offsets `at`."""
    word = tl.load((blocks + at).to(tl.pointer_type(tl.int16)), mask=mask, other=0)
    return tl.reshape(word.to(tl.float16, bitcast=True).to(tl.float32), (at.shape[0], 1))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 1]` as blocks at byte offsets `at`."""
    store_word16_tl(out, at, tl.reshape(given_half_bits_tl(x), (at.shape[0],)), mask)


ROWS = (QuantType(FACTS["F16"], encode, decode, TritonPair(encode_tl, decode_tl, tile=1024)),)
