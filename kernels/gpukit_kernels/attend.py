"""Attention of one new position of a sequence: the reference of `attend_triton`."""

import torch
from torch import Tensor


def turned(x: Tensor, turns: Tensor, pairs: bool) -> Tensor:
    """`x` `[heads, head_dim]` with its pairs, neighbours or halves, turned by `turns`
    `[n_rot / 2, 2]`, cosines and sines; values behind the first n_rot stay."""
    n_rot = 2 * len(turns)
    rotated = x[:, :n_rot]
    parts = rotated.unflatten(1, (-1, 2)) if pairs else rotated.unflatten(1, (2, -1)).mT
    cosine, sine = turns.unbind(1)
    first, second = parts.unbind(2)
    both = torch.stack((first * cosine - second * sine, first * sine + second * cosine), 2)
    return torch.cat(((both if pairs else both.mT).flatten(1), x[:, n_rot:]), 1)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` over the root of its mean square along the last dimension, times `weight`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def attend_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turns: Tensor,
    keys: Tensor,
    values: Tensor,
    position: int,
    *,
    pairs: bool,
    scale: float,
    eps: float = 0.0,
    window: int = 0,
    cap: float = 0.0,
    norms: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """float32 `[heads * head_dim]`: attention of the position that is new.

    q, k and v are float32 `[n * head_dim]`; `turns`, float32 `[positions, n_rot / 2, 2]`, holds
    cosines and sines. Keys and values, float32 or float16 `[kv_heads, capacity, head_dim]`, hold
    `position` places; the next is filled. `norms` go over each head of q and k before RoPE.
    """
    head_dim = keys.shape[2]
    q, k, v = (x.view(-1, head_dim) for x in (q, k, v))
    if norms is not None:
        q, k = normed(q, norms[0], eps), normed(k, norms[1], eps)
    q, k = turned(q, turns[position], pairs), turned(k, turns[position], pairs)
    keys[:, position], values[:, position] = k.to(keys.dtype), v.to(values.dtype)
    first = max(position + 1 - window, 0) if window else 0
    shared = len(q) // len(keys)
    seen_k, seen_v = (
        x[:, first : position + 1].float().repeat_interleave(shared, 0) for x in (keys, values)
    )
    scores = (seen_k @ q[:, :, None]).squeeze(2) * scale
    if cap:
        scores = torch.tanh(scores / cap) * cap
    return (torch.softmax(scores, 1)[:, None] @ seen_v).flatten()
