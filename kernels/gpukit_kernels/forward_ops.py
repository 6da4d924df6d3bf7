"""What a model computes beside products, wherever its tensors are: the one place that chooses
between torch and Triton for it.

Plain functions: nothing traces a model, and a registered op costs 10 us a call.
"""

import torch
from torch import Tensor

from gpukit_kernels.causal import attention_reference
from gpukit_kernels.causal_triton import attention_triton
from gpukit_kernels.ops import usual_backend
from gpukit_kernels.rows import (
    Activation,
    gated_reference,
    likelihood_reference,
    rms_norm_reference,
    rotate_reference,
)
from gpukit_kernels.rows_triton import (
    WIDEST,
    gated_triton,
    likelihood_triton,
    rms_norm_triton,
    rotate_triton,
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float32 `[..., n]`: x over the root of its mean square along the last dimension plus `eps`,
    times `weight` `[n]`."""
    if _triton(x) and x.shape[-1] <= WIDEST:
        return rms_norm_triton(x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """float32 activation(gate) * up, of two of one shape; `gate` may be changed."""
    return (gated_triton if _triton(gate) else gated_reference)(gate, up, activation)


def rotate(x: Tensor, turns: Tensor, *, neighbours: bool, dtype: torch.dtype) -> Tensor:
    """`dtype` `[count, heads, head_dim]`: float32 x with each pair of a head turned: times `turns`,
    complex64 `[count, 1, pairs]`.

    A pair is two neighbours, or i and i + pairs. Values behind the pairs stay.
    """
    if _triton(x):
        return rotate_triton(x, turns, neighbours=neighbours, dtype=dtype)
    return rotate_reference(x, turns, neighbours=neighbours).to(dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0, cap: float = 0.0
) -> Tensor:
    """float32 `[batch, count, heads * head_dim]` of float16 q `[batch, count, heads, head_dim]`,
    the last positions of k and v `[batch, length, kv_heads, head_dim]`: causal attention.

    Each kv head is shared by heads / kv_heads neighbours. With a window a position sees that many,
    itself included; with a cap a score x becomes cap * tanh(x / cap). Memory does not grow with
    count times length.
    """
    run = attention_triton if _triton(q) else attention_reference
    return run(q, k, v, scale, window, cap)


def likelihood(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row of float32 logits `[rows, vocab]`: its largest, float32; float64 ln of the sum of
    exp(logit - largest), off by 1e-6 at most; the logit of its target, int64 `[rows]`; the first
    place of the largest, int32. Where a logit is NaN the largest is, too."""
    return (likelihood_triton if _triton(logits) else likelihood_reference)(logits, targets)


def _triton(x: Tensor) -> bool:
    return usual_backend(x.device) == "triton"
