"""F32: four bytes a value, IEEE binary32, little endian."""

import torch
from torch import Tensor

from gpukit_kernels.bits import byte_word
from gpukit_kernels.bits_triton import store_word32_tl
from gpukit_kernels.cpu.trace import is_tracing
from gpukit_kernels.facts import FACTS
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import QuantType, TritonPair


def decode(blocks: Tensor) -> Tensor:
    """float32 `[1, lanes]` of uint8 `[4, lanes]`."""
    if is_tracing():
        return byte_word(blocks, 0, 4).view(torch.float32)[None]
    return blocks.t().contiguous().view(torch.float32).t()


def encode(x: Tensor) -> Tensor:
    """uint8 `[4, lanes]` of float32 `[1, lanes]`: the bits, NaN payloads included."""
    return x.t().contiguous().view(torch.uint8).t()


@triton.jit
def decode_tl(blocks, at, mask):
    """float32 `[TILE, 1]` of the blocks at byte offsets `at`."""
    word = tl.load((blocks + at).to(tl.pointer_type(tl.int32)), mask=mask, other=0)
    return tl.reshape(word.to(tl.float32, bitcast=True), (at.shape[0], 1))


@triton.jit
def encode_tl(x, out, at, mask):
    """Store float32 `[TILE, 1]` as blocks at byte offsets `at`."""
    store_word32_tl(out, at, tl.reshape(x.to(tl.int32, bitcast=True), (at.shape[0],)), mask)


ROWS = (QuantType(FACTS["F32"], encode, decode, TritonPair(encode_tl, decode_tl, tile=1024)),)
