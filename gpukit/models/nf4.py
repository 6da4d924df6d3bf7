"""The 4-bit NormalFloat of QLoRA (NF4), as bitsandbytes computes it: what it makes of weights.

The values of a tensor in their order are blocks of 64. Of each the largest magnitude is kept, and
the nearest of 16 levels of value / largest for every value. With double quantisation the largest
magnitudes less their mean are stored the same way, in blocks of 256 with 256 levels.
"""

from functools import cache

import torch
from torch import Tensor

BLOCK = 64
# Of the largest magnitudes, where they are quantised themselves.
OUTER_BLOCK = 256

# Quantiles of the normal distribution, by the paper and the sources of bitsandbytes.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# Less than this counts as this, so that nothing is divided by 0.
_SMALLEST = 1e-38


@cache
def levels() -> Tensor:
    """float32 `[16]`, ascending."""
    return torch.tensor(LEVELS, dtype=torch.float32)


@cache
def dynamic_levels() -> Tensor:
    """float32 `[256]`, ascending: for each of seven powers of ten a number of fractions that
    doubles, with both signs, and 0 and 1."""
    found = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(found), dtype=torch.float32)


def largest(values: Tensor, block: int = BLOCK) -> Tensor:
    """float32 `[blocks]`: the largest magnitude of each block of `values`, the last one short."""
    flat = values.reshape(-1).to(torch.float32).abs()
    if short := -len(flat) % block:
        flat = torch.cat((flat, flat.new_zeros(short)))
    return flat.view(-1, block).amax(1)


def twice_quantised(magnitudes: Tensor) -> Tensor:
    """`magnitudes` `[blocks]` of a whole tensor as double quantisation decodes them."""
    mean = magnitudes.to(torch.float64).mean().to(torch.float32)
    rest = magnitudes - mean
    each = largest(rest, OUTER_BLOCK).repeat_interleave(OUTER_BLOCK)[: len(rest)]
    return _nearest(rest, each, dynamic_levels(), each) + mean


def decoded(values: Tensor, at: int, magnitudes: Tensor, decoded_with: Tensor) -> Tensor:
    """float32, of the shape of `values`: what is left of them, the first of which is number `at`
    of its tensor. `magnitudes` are the largest of the whole tensor's blocks, `decoded_with` what
    was stored of those."""
    first, count = at // BLOCK, values.numel()
    last = -(-(at + count) // BLOCK)

    def each(found: Tensor) -> Tensor:
        some = found[first:last].to(values.device).repeat_interleave(BLOCK)
        return some[at - first * BLOCK :][:count]

    flat = values.reshape(-1).to(torch.float32)
    return _nearest(flat, each(magnitudes), levels(), each(decoded_with)).view(values.shape)


def _nearest(values: Tensor, magnitudes: Tensor, known: Tensor, decoded_with: Tensor) -> Tensor:
    """The level nearest to each value over its magnitude, times what that is decoded with; between
    two levels the lower one."""
    known = known.to(values.device)
    scaled = (values * (1.0 / magnitudes.clamp(min=_SMALLEST))).clamp(-1, 1)
    between = (known[:-1] + known[1:]) / 2
    return known[torch.bucketize(scaled, between)] * decoded_with
