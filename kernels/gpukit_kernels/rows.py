"""What a model does with rows of activations beside products, in torch: the reference of
`rows_triton`, and what runs on the CPU. All in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": partial(silu, inplace=True),
    "gelu_tanh": partial(gelu, approximate="tanh"),
}
# Of the gates of gpt-oss.
CLAMP, SHARPNESS = 7.0, 1.702


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over the root of its mean square along the last dimension plus `eps`, times the weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gated_reference(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up, for which `gate` is used up; with "swiglu_oai"
    gate * sigmoid(1.702 gate) * (up + 1), of a gate up to 7 and an up from -7 to 7."""
    if activation == "swiglu_oai":
        gate = gate.clamp_(max=CLAMP)
        return gate.mul_(torch.sigmoid(gate * SHARPNESS)).mul_(up.clamp(-CLAMP, CLAMP).add_(1))
    return ACTIVATIONS[activation](gate).mul_(up)


def rotate_reference(x: Tensor, turns: Tensor, *, neighbours: bool) -> Tensor:
    """`x` `[count, heads, head_dim]` with each pair of a head turned: times `turns`, complex64
    `[count, 1, pairs]`.

    A pair is two neighbours, or i and i + pairs. Values behind the pairs stay.
    """
    n = turns.shape[-1]
    if neighbours:
        pairs = torch.view_as_complex(x[..., : 2 * n].reshape(*x.shape[:-1], n, 2))
        turned = torch.view_as_real(pairs * turns).flatten(-2)
        return turned if x.shape[-1] == 2 * n else torch.cat((turned, x[..., 2 * n :]), -1)
    pairs = torch.complex(x[..., :n], x[..., n : 2 * n]) * turns
    return torch.cat((pairs.real, pairs.imag, x[..., 2 * n :]), -1)


def likelihood_reference(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row of float32 logits `[rows, vocab]`: its largest, float32; float64 ln of the sum of
    exp(logit - largest); the logit of its target, int64 `[rows]`; the first place of the largest,
    int32. Where a logit is NaN the largest is."""
    top, likeliest = logits.max(-1)
    log_sum = (logits - top[:, None]).exp_().sum(-1, dtype=torch.float64).log_()
    wanted = logits.gather(-1, targets[:, None])[:, 0]
    return top, log_sum, wanted, likeliest.int()
