"""Candidates: weights whose bytes are put in another order once, so that a thread's part of them is
one wide load. Whether they repay on a GPU is what `vectors` measures; the package does without.

A weight becomes a plane for each kind of bytes: levels of all blocks, then their high bits, their
scales, their d. It takes as many bytes as before.
"""

import torch
from torch import Tensor

from gpukit_kernels import QuantType
from gpukit_kernels.dots_triton import half_value_tl, load2_tl, load4_tl, load_tl
from gpukit_kernels.jit import tl, triton
from gpukit_kernels.table import VectorParts


@triton.jit
def _plane_tl(blocks, begin, count, KIND: tl.constexpr):
    """Where the plane begins that has `begin` bytes of every block before it."""
    return (blocks + count * begin).to(tl.pointer_type(KIND))


@triton.jit
def _q6_k_read_tl(blocks, first, block, part, count, mask):
    at = first.to(tl.int32) + block
    low = load4_tl(_plane_tl(blocks, 0, count, tl.int32) + at * 32 + part * 4, mask)
    high = load2_tl(_plane_tl(blocks, 128, count, tl.int32) + at * 16 + part * 2, mask)
    scales = load_tl(_plane_tl(blocks, 192, count, tl.int16) + at * 8 + part, mask)
    return low + high + (scales, load_tl(_plane_tl(blocks, 208, count, tl.int16) + at, mask))


@triton.jit
def _q6_k_unpack_tl(found, _):
    low, high = (), ()
    for i in tl.static_range(4):
        first = ((found[4] >> (2 * i)) & 0x03030303) << 4
        second = ((found[5] >> (2 * i)) & 0x03030303) << 4
        low = low + ((found[i] & 0x0F0F0F0F) | first,)  # noqa: RUF005
        high = high + (((found[i] >> 4) & 0x0F0F0F0F) | second,)  # noqa: RUF005
    d, scales = half_value_tl(found[7]), found[6].to(tl.int32)
    steps = d * ((scales << 24) >> 24).to(tl.float32), d * (scales >> 8).to(tl.float32)
    return low + high, steps, ()


@triton.jit
def _q8_0_read_tl(blocks, first, block, part, count, mask):
    at = first.to(tl.int32) + block
    levels = load4_tl(_plane_tl(blocks, 0, count, tl.int32) + at * 8 + part * 4, mask)
    return levels + (load_tl(_plane_tl(blocks, 32, count, tl.int16) + at, mask),)  # noqa: RUF005


@triton.jit
def _q8_0_unpack_tl(found, _):
    return (found[0], found[1], found[2], found[3]), (half_value_tl(found[4]),), ()


@triton.jit
def _q4_0_read_tl(blocks, first, block, _, count, mask):
    at = first.to(tl.int32) + block
    levels = load4_tl(_plane_tl(blocks, 0, count, tl.int32) + at * 4, mask)
    return levels + (load_tl(_plane_tl(blocks, 16, count, tl.int16) + at, mask),)  # noqa: RUF005


@triton.jit
def _q4_0_unpack_tl(found, _):
    low, high = (), ()
    for i in tl.static_range(4):
        low = low + (found[i] & 0x0F0F0F0F,)  # noqa: RUF005
        high = high + ((found[i] >> 4) & 0x0F0F0F0F,)  # noqa: RUF005
    return low + high, (half_value_tl(found[4]),), ()


@triton.jit
def _groups_tl(part):
    return part * 8


@triton.jit
def _sixteens_tl(part):
    return part * 4


PARTS = {
    "Q6_K": VectorParts(
        _q6_k_read_tl, _q6_k_unpack_tl, _groups_tl,
        parts=8, pieces=2, stride=4, words=4, top=32, center=32,
    ),
    "Q8_0": VectorParts(
        _q8_0_read_tl, _q8_0_unpack_tl, _sixteens_tl,
        parts=2, pieces=1, stride=0, words=4, top=128, signed=True,
    ),
    "Q4_0": VectorParts(
        _q4_0_read_tl, _q4_0_unpack_tl, _groups_tl,
        parts=1, pieces=1, stride=0, words=8, top=8, center=8,
    ),
}  # fmt: skip


def planes(blocks: Tensor, row: QuantType) -> Tensor:
    """uint8 `[rows, row_bytes]`: the bytes of `blocks` in the order that `PARTS` reads."""
    flat = blocks.reshape(-1, row.nbytes)
    if row.name != "Q6_K":
        return torch.cat([flat[:, 2:].reshape(-1), flat[:, :2].reshape(-1)]).view_as(blocks)
    low = flat[:, :128].reshape(-1, 2, 1, 64)
    # Sixteen groups of sixteen levels; two of them share a plane's bytes.
    low = torch.cat([low & 15, low >> 4], dim=2).reshape(-1, 8, 2, 16)
    packed = low[:, :, 0] | (low[:, :, 1] << 4)
    high = flat[:, 128:192].reshape(-1, 2, 1, 32)
    high = torch.cat([(high >> (2 * k)) & 3 for k in range(4)], dim=2).reshape(-1, 8, 2, 4, 4)
    crumbs = high[:, :, :, 0] | (high[:, :, :, 1] << 2)
    crumbs |= (high[:, :, :, 2] << 4) | (high[:, :, :, 3] << 6)
    parts = packed, crumbs, flat[:, 192:208], flat[:, 208:]
    return torch.cat([part.reshape(-1) for part in parts]).view_as(blocks)
