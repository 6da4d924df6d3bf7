"""Keys of logits, and the largest as the next token, without waiting for the host."""

import torch
from torch import Tensor

from gpukit_kernels.jit import tl, triton

# Logits of a program.
TILE = 1024


@triton.jit
def keys_kernel(logits, keys, tops, count, TILE: tl.constexpr):
    """The keys of `count` logits, and the largest of each program's."""
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = place < count
    value = tl.load(logits + place, mask=mask, other=float("-inf"))
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = tl.where(value == 0.0, 0, tl.where(value == value, bits, 0x7FFFFFFF))
    key = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)
    tl.store(keys + place, key, mask=mask)
    tl.store(tops + tl.program_id(0), tl.max(key, axis=0))


@triton.jit
def next_kernel(tops, best, token, count, SIZE: tl.constexpr):
    """The largest of `count` keys, and its place as the token."""
    place = tl.arange(0, SIZE)
    # Of no key the bits are all ones but the first.
    key = tl.load(tops + place, mask=place < count, other=-0x7FFFFFFFFFFFFFFF)
    largest = tl.max(key, axis=0)
    tl.store(best, largest)
    tl.store(token, 0x7FFFFFFF - (largest & 0xFFFFFFFF))


def next_triton(logits: Tensor, keys: Tensor, tops: Tensor, best: Tensor, token: Tensor) -> None:
    """`largest.keys_reference` of float32 `logits` `[n]` into int64 `keys` `[n]`, the largest into
    `best` `[1]`, its place into int64 `token` `[1]`. Nothing is allocated.

    int64 `tops` has `tops_of(n)` places for what programs leave each other.
    """
    count = len(logits)
    programs = triton.cdiv(count, TILE)
    with torch.cuda.device_of(logits):
        keys_kernel[(programs,)](logits, keys, tops, count, TILE=TILE)
        next_kernel[(1,)](tops, best, token, programs, SIZE=next_size(programs))


def tops_of(count: int) -> int:
    """Programs that `next_triton` has for so many logits."""
    return triton.cdiv(count, TILE)


def next_size(programs: int) -> int:
    """The constant of `next_kernel` for what so many programs left."""
    return triton.next_power_of_2(programs)
