"""Low-rank deltas added to weights: the reference, and the sum that every device gives.

Of one adapter delta[r, c] = Σ_k b[r, k]·a[k, c], from zero on in the order of k, each product
rounded to float32 before it is added (no FMA); then times the scale, rounded; then added to the
float32 weight. Of several adapters one is added after the other. With DoRA's magnitudes each row of
the sum is then scaled by magnitude / length, rounded, where the length is that of the weight as it
came plus this delta: squares are summed in 32 sums, of columns c, c + 32, c + 64 and so on, which
are then added in pairs of neighbours until one is left, whose root is taken.

No order is faster everywhere, so that this costs nothing: a product of rank 16 takes less time than
reading the weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit_kernels.factors import Factors

# Sums of squares that are kept side by side: two of the widest vectors.
LANES = 32


def low_rank(b: Tensor, a: Tensor, scale: float) -> Tensor:
    """`[..., rows, width]`: scale * b·a as the module says it, in the dtype of `b` and `a`."""
    total = b.new_zeros((*b.shape[:-1], a.shape[-1]))
    for k in range(b.shape[-1]):
        total += b[..., k, None] * a[..., k, None, :]
    return total * torch.tensor(scale, dtype=b.dtype, device=b.device)


def lengths(rows: Tensor) -> Tensor:
    """`[...]`: the length of each row of `[..., width]`, float32 or float64."""
    width = rows.shape[-1]
    padded = torch.nn.functional.pad(rows, (0, -width % LANES)).unflatten(-1, (-1, LANES))
    total = rows.new_zeros((*rows.shape[:-1], LANES))
    for part in padded.unbind(-2):
        total += part * part
    while total.shape[-1] > 1:
        total = total[..., 0::2] + total[..., 1::2]
    # A root in float32 is not always the nearest with torch on the CPU; in float64 it is.
    return total[..., 0].to(torch.float64).sqrt().to(rows.dtype)


def merge(weight: Tensor, factors: Sequence[Factors[Tensor]]) -> Tensor:
    """float32 `[..., rows, width]`: `weight` with the deltas of all `factors`."""
    found = weight.clone()
    for b, a, scale, magnitude in factors:
        delta = low_rank(b, a, scale)
        found += delta
        if magnitude is not None:
            found *= (magnitude / lengths(weight + delta)).unsqueeze(-1)
    return found
