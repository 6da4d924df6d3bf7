"""Causal attention of float16 queries, keys and values: shared heads, a window, a cap; memory that
grows with the length, not with its square.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Scores, or places of a mask, that are in memory at a time.
SCORES = 1 << 24


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """float32 `[batch, count, heads * head_dim]` of float16 q `[batch, count, heads, head_dim]`,
    the last positions of k and v `[batch, length, kv_heads, head_dim]`; computed in float32.

    Each kv head is shared by heads / kv_heads neighbours. With a window a position sees that many,
    itself included; with a cap a score x becomes cap * tanh(x / cap). With float32 `sinks`
    `[heads]` a share goes to nothing, as to one more key with this score.
    """
    group = q.shape[2] // k.shape[2]
    rows = max(SCORES // (q.shape[0] * q.shape[2] * k.shape[1]), 1)
    keys, values = (x.float().repeat_interleave(group, 2) for x in (k, v))
    out, first = [], 0
    for part in torch.split(q.float(), rows, 1):
        scores = torch.einsum("bqhd,bkhd->bhqk", part, keys) * scale
        if cap:
            scores = torch.tanh(scores / cap) * cap
        seen = _seen(first, part.shape[1], q, k, window)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            sunk = sinks[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, sunk), -1)
        shares = torch.softmax(scores, -1)[..., : k.shape[1]]
        out.append(torch.einsum("bhqk,bkhd->bqhd", shares, values))
        first += part.shape[1]
    return torch.cat(out, 1).flatten(2)


def attention_torch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0, cap: float = 0.0
) -> Tensor:
    """The same by torch's own kernels, where there is no cap: shares of float16, sums in float32,
    and a result that is rounded to float16 before it is float32."""
    if cap:
        return attention_reference(q, k, v, scale, window, cap)
    group = q.shape[2] // k.shape[2]
    # Heads of their own for all: what every one of torch's kernels takes.
    keys, values = (x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    if is_plain(q, k, window, cap):
        out = scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, is_causal=q.shape[1] > 1, scale=scale
        )
        return out.transpose(1, 2).float().flatten(2)
    parts, first = [], 0
    for part in torch.split(q, max(SCORES // k.shape[1], 1), 1):
        seen = _seen(first, part.shape[1], q, k, window)
        parts.append(
            scaled_dot_product_attention(part.transpose(1, 2), keys, values, seen, scale=scale)
        )
        first += part.shape[1]
    return torch.cat(parts, 2).transpose(1, 2).float().flatten(2)


def is_plain(q: Tensor, k: Tensor, window: int, cap: float) -> bool:
    """Whether queries see all that is before them, from the first one on, or the last sees all."""
    count, length = q.shape[1], k.shape[1]
    return not cap and count in (1, length) and (not window or window >= length)


def _seen(first: int, count: int, q: Tensor, k: Tensor, window: int) -> Tensor:
    """bool `[count, length]`: what queries `first` and those behind it see."""
    length = k.shape[1]
    own = length - q.shape[1] + first + torch.arange(count, device=q.device)[:, None]
    positions = torch.arange(length, device=q.device)
    seen = positions <= own
    return seen & (positions > own - window) if window else seen
