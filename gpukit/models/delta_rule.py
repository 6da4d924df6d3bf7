"""The gated delta rule: linear attention whose state is a matrix a head, which each position
changes by what it does not hold yet.

With the state S `[d, d]`, queries q, keys k and values v of a position, a its decay and b how much
of it is written:

    S = a S,  S = S + k (b (v - S^T k))^T,  what comes out: S^T q

Facts: the paper on gated delta networks (arXiv 2412.06464), transformers' Qwen3_5GatedDeltaNet.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

# Positions that are computed as products of matrices together.
CHUNK = 64


def delta_rule_by_steps(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """What comes out of each position, float32 `[..., length, d]`, and the state behind the last,
    `[..., d, d]` with keys as rows: position by position.

    q, k and v `[..., length, d]`, the logarithms of decays and the shares that are written
    `[..., length]`; dimensions before those of q and k may be 1 where v has more.
    """
    found = []
    for at in range(v.shape[-2]):
        query, key, value = (x[..., at, None, :] for x in (q, k, v))
        state = state * log_decay[..., at, None, None].exp()
        missing = (value - key @ state) * share[..., at, None, None]
        state = state + key.mT * missing
        found.append(query @ state)
    return torch.cat(found, -2), state


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, share: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as `delta_rule_by_steps`, in products over chunks of positions.

    With D the sum of log decays from the first position of a chunk on, S the state before it, and
    u_i what position i adds in k_i u_i^T:

        u_i + b_i sum_(j<i) e^(D_i - D_j) (k_i k_j) u_j = b_i (v_i - e^(D_i) S^T k_i)

    is a triangular system for all positions of a chunk; it is solved for v and for k, so that only
    products are left for when S is known. Sums are float32 in another order than by steps; those of
    decays are float64, since differences of large ones count.
    """
    length, d = v.shape[-2:]
    if length == 1:
        return delta_rule_by_steps(q, k, v, log_decay, share, state)
    size = min(CHUNK, length)
    behind = -length % size
    q, k, v = (_in_chunks(pad(x, (0, 0, 0, behind)), size) for x in (q, k, v))
    log_decay, share = (
        _in_chunks(pad(x, (0, behind))[..., None], size)[..., 0] for x in (log_decay, share)
    )
    total = log_decay.cumsum(-1, dtype=torch.float64)
    later = torch.ones(size, size, dtype=torch.bool, device=v.device).triu(1)
    between = (total[..., :, None] - total[..., None, :]).to(v.dtype)
    between = between.masked_fill_(later, -torch.inf).exp_()
    from_start = total.to(v.dtype).exp()[..., None]
    to_end = (total[..., -1:] - total).to(v.dtype).exp()[..., None]
    system = (k @ k.mT) * between * share[..., None]
    wanted = torch.cat((v, k * from_start), -1) * share[..., None]
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    values, keys = torch.split(solved, d, -1)
    seen = (q @ k.mT) * between
    q, k = q * from_start, (k * to_end).mT
    whole = from_start[..., -1, :, None]
    found = []
    for at in range(v.shape[-3]):
        added = values[..., at, :, :] - keys[..., at, :, :] @ state
        found.append(q[..., at, :, :] @ state + seen[..., at, :, :] @ added)
        state = state * whole[..., at, :, :] + k[..., at, :, :] @ added
    return torch.cat(found, -2)[..., :length, :], state


def _in_chunks(x: Tensor, size: int) -> Tensor:
    """`[..., chunks, size, d]` of `[..., length, d]`."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def causal_conv(x: Tensor, taps: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """float32 `[sequences, length, channels]`: of each channel the last positions of `x`, as many
    as `taps` `[channels, n]` has columns, times them; and the last n - 1 positions, which the next
    call has as `before` (None: zeros)."""
    n = taps.shape[1]
    if before is None:
        before = x.new_zeros(x.shape[0], n - 1, x.shape[2])
    whole, length = torch.cat((before, x), 1), x.shape[1]
    found = whole[:, :length] * taps[:, 0]
    for place in range(1, n):
        found = torch.addcmul(found, whole[:, place : place + length], taps[:, place])
    return found, whole[:, length:]
