"""The nearest of the numbers of E2M1, four bits with a sign, which MXFP4 and NVFP4 scale.

Source: best_index_mxfp4, kvalues_mxfp4 in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

# The eight magnitudes, doubled to be whole; the second eight levels are the first less than zero.
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)


def e2m1_values(level: Tensor) -> Tensor:
    """float32: the doubled numbers of int32 0..15."""
    number = torch.tensor(E2M1, dtype=torch.float32, device=level.device)[level & 7]
    # A number of zero has no sign.
    return torch.where((level & 8) != 0, 0.0 - number, number)


def nearest_e2m1(x: Tensor, scale: Tensor) -> Tensor:
    """float32 0..15: the level whose doubled number times `scale` is nearest to `x` as errors
    round, the smaller one of two as near; 0 for NaN."""
    magnitude = x.abs()
    error = magnitude
    level = torch.zeros_like(x)
    for i, number in enumerate(E2M1[1:], 1):
        tried = (number * scale - magnitude).abs()
        better = tried < error
        error = torch.where(better, tried, error)
        level = torch.where(better, float(i), level)
    return torch.where((x < 0) & (level != 0), level + 8.0, level)
