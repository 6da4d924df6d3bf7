"""BF16: two bytes a value, the upper half of binary32, rounded to even.

A NaN keeps its upper bits and is made quiet.

Source: ggml_compute_fp32_to_bf16 in llama.cpp's ggml-impl.h.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import byte_word
from gpukit_kernels.bits_triton import bfloat_bits_tl, store_word16_tl
from gpukit_kernels.cpu.trace import is_tracing
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[2, lanes]`."""
    if is_tracing():
        return (byte_word(blocks, 0, 2) << 16).view(torch.float32)[None]
    return blocks.t().contiguous().view(torch.bfloat16).to(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """Bytes `[2, lanes]` of float32 `[1, lanes]`."""
    return _round(x[0])[:, None].view(torch.uint8).t()


def _round(v: Tensor) -> Tensor:
    bits = v.view(torch.int32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return torch.where(v != v, quiet, rounded).to(torch.int16)


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 1]` of the blocks at byte offsets `at`."""
    word = tl.load((blocks + at).to(tl.pointer_type(tl.int16)), mask=mask, other=0)
    return tl.reshape((word.to(tl.int32) << 16).to(tl.float32, bitcast=True), (at.shape[0], 1))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 1]` as blocks at byte offsets `at`."""
    store_word16_tl(out, at, tl.reshape(bfloat_bits_tl(x), (at.shape[0],)), mask)


ROWS = (QuantType(FACTS["BF16"], encode, decode, TritonPair(encode_tl, decode_tl, tile=1024)),)
