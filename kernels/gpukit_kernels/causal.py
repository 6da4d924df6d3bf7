"""Causal attention in float16 with sums in float32: shared heads, a window, a cap; memory that
grows with the length, not with its square.
"""

import torch
from torch import Tensor

# Scores of the reference that are in memory at a time.
SCORES = 1 << 24


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0, cap: float = 0.0
) -> Tensor:
    """float32 `[batch, count, heads * head_dim]` of float16 q `[batch, count, heads, head_dim]`,
    the last positions of k and v `[batch, length, kv_heads, head_dim]`; computed in float32.

    Each kv head is shared by heads / kv_heads neighbours. With a window a position sees that many,
    itself included; with a cap a score x becomes cap * tanh(x / cap).
    """
    count, length = q.shape[1], k.shape[1]
    group = q.shape[2] // k.shape[2]
    rows = max(SCORES // (q.shape[0] * q.shape[2] * length), 1)
    positions = torch.arange(length, device=q.device)
    keys, values = (x.float().repeat_interleave(group, 2) for x in (k, v))
    out = []
    for first, part in zip(range(0, count, rows), torch.split(q.float(), rows, 1), strict=True):
        own = length - count + first + torch.arange(part.shape[1], device=q.device)[:, None]
        hidden = positions > own
        if window:
            hidden = hidden | (positions <= own - window)
        scores = torch.einsum("bqhd,bkhd->bhqk", part, keys) * scale
        if cap:
            scores = torch.tanh(scores / cap) * cap
        shares = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
        out.append(torch.einsum("bhqk,bkhd->bqhd", shares, values))
    return torch.cat(out, 1).flatten(2)
