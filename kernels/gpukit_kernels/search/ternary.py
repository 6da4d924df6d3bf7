"""What TQ1_0 and TQ2_0 share: a block's largest magnitude, and its values as -1, 0 or 1 of it.

Source: quantize_row_tq1_0_ref, quantize_row_tq2_0_ref in llama.cpp's ggml-quants.c.
"""

import torch
from torch import Tensor

from gpukit_kernels.bits import divide, half_bits, round_away, word_bytes
from gpukit_kernels.search.common import largest_magnitude
from gpukit_kernels.stages import stage


def ternary_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """d, bytes `[2, lanes]`, of float32 `[256, lanes]`, and 1 / d or zero."""
    d = torch.zeros(x.shape[1:])
    # A stage that is called eight times, where one of all values would be eight times as long.
    for group in x.view(8, 32, -1):
        d = _larger(group, d)
    return _scale(d)


@stage
def _larger(group: Tensor, d: Tensor) -> Tensor:
    return largest_magnitude(group, d)


@stage
def _scale(d: Tensor) -> tuple[Tensor, Tensor]:
    inverse = torch.where(d != 0, divide(1.0, d), torch.zeros_like(d))
    return word_bytes(half_bits(d), 2), inverse


def ternary_signs(x: Tensor, inverse: Tensor) -> Tensor:
    """int32 -1, 0 or 1, shaped as `x`: levels less one; beside a NaN any number, of which only the
    low byte is llama.cpp's.

    What is no int32 is one: its low byte is 0, as that of the C's lroundf.
    """
    return round_away(x * inverse)


def ternary_levels(x: Tensor, inverse: Tensor) -> Tensor:
    """int32 0, 1 or 2, ternary_signs and one, of which only the low byte counts."""
    return ternary_signs(x, inverse) + 1
