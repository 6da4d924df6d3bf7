"""The largest logits as whole numbers that sort as they do: of equals the first, NaN above all.

bits 32 and up   the logit's bits, those of negative ones turned round, so that they sort
bits 0 to 31     2^31 - 1 less the place
"""

import torch
from torch import Tensor

MOST = 0x7FFFFFFF


def keys_reference(logits: Tensor) -> Tensor:
    """int64 `[n]`: the keys of float32 `[n]`, n < 2^31."""
    bits = torch.where(logits.isnan(), MOST, logits.view(torch.int32))
    # Both zeros are one.
    bits = torch.where(logits == 0, 0, bits)
    bits = torch.where(bits < 0, bits ^ MOST, bits)
    places = MOST - torch.arange(len(logits), device=logits.device)
    return (bits.to(torch.int64) << 32) | places


def of_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, float32, and their places, int64, that `keys` stand for."""
    bits = (keys >> 32).to(torch.int32)
    bits = torch.where(bits < 0, bits ^ MOST, bits)
    return bits.view(torch.float32), MOST - (keys & 0xFFFFFFFF)
