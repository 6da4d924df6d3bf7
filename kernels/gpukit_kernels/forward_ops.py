"""What a model computes beside products, wherever its tensors are: the one place that chooses
between torch and Triton for it.

Plain functions: nothing traces a model, and the dispatcher's way takes longer than a small kernel.
"""

import torch
from torch import Tensor

from gpukit_kernels import causal, rows, rows_triton, trusted
from gpukit_kernels.causal_triton import attention_triton
from gpukit_kernels.ops import usual_backend
from gpukit_kernels.rows import Activation


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float32 `[..., n]`: x over the root of its mean square along the last dimension plus `eps`,
    times `weight` `[n]`."""
    if _triton(x) and x.shape[-1] <= rows_triton.WIDEST and trusted.norms(x.shape[-1], x.device):
        return rows_triton.rms_norm_triton(x, weight, eps)
    return rows.rms_norm_reference(x, weight, eps)


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """float32 activation(gate) * up, of two of one shape, as `gated_reference` says it; `gate` may
    be changed."""
    known = activation in rows.ACTIVATIONS
    if known and _triton(gate) and trusted.gates(activation, gate.device):
        return rows_triton.gated_triton(gate, up, activation)
    return rows.gated_reference(gate, up, activation)


def rotate(x: Tensor, turns: Tensor, *, neighbours: bool, dtype: torch.dtype) -> Tensor:
    """`dtype` `[count, heads, head_dim]`: float32 x with each pair of a head turned: times `turns`,
    complex64 `[count, 1, pairs]`.

    A pair is two neighbours, or i and i + pairs. Values behind the pairs stay.
    """
    shape = (x.shape[1], x.shape[2])
    if _triton(x) and trusted.turns(shape, turns.shape[-1], neighbours, dtype, x.device):
        return rows_triton.rotate_triton(x, turns, neighbours=neighbours, dtype=dtype)
    return rows.rotate_reference(x, turns, neighbours=neighbours).to(dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """float32 `[batch, count, heads * head_dim]` of float16 q `[batch, count, heads, head_dim]`,
    the last positions of k and v `[batch, length, kv_heads, head_dim]`: causal attention.

    Each kv head is shared by heads / kv_heads neighbours. With a window a position sees that many,
    itself included; with a cap a score x becomes cap * tanh(x / cap). Memory does not grow with
    count times length. With float32 `sinks` `[heads]` a share goes to nothing, as to one more key
    with this score; no kernel has them yet.
    """
    if sinks is not None:
        return causal.attention_reference(q, k, v, scale, window, cap, sinks)
    facts = (q.shape[3], q.shape[2] // k.shape[2], window > 0, cap > 0, q.device)
    if not _triton(q):
        run = causal.attention_torch
    elif not _is_step(q, k, window, cap) and trusted.attention(*facts, own=True):
        run = attention_triton
    elif trusted.attention(*facts, own=False):
        run = causal.attention_torch
    else:
        run = causal.attention_reference
    return run(q, k, v, scale, window, cap)


def _is_step(q: Tensor, k: Tensor, window: int, cap: float) -> bool:
    """Whether one query sees all keys: a tile of queries of the kernel would stand empty."""
    return q.shape[1] == 1 and causal.is_plain(q, k, window, cap)


def likelihood(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row of float32 logits `[rows, vocab]`: its largest, float32; float64 ln of the sum of
    exp(logit - largest), off by 1e-6 at most; the logit of its target, int64 `[rows]`; the first
    place of the largest, int32. Where a logit is NaN the largest is, too."""
    if _triton(logits) and trusted.likelihoods(logits.device):
        return rows_triton.likelihood_triton(logits, targets)
    return rows.likelihood_reference(logits, targets)


def _triton(x: Tensor) -> bool:
    return usual_backend(x.device) == "triton"
