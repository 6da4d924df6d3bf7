"""Which kernels of a forward pass are used on a device: those that computed there what their
torch references compute on the CPU, each as it is compiled for the sizes that are asked for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpukit_kernels import causal, rows, rows_triton
from gpukit_kernels.causal_triton import attention_triton
from gpukit_kernels.rows import Activation
from gpukit_kernels.verified import verified

# A float32 operation errs by 2^-24 of its result, a GPU's exponential by four times that; the
# largest chain has some thirty of them.
NEAR = 2.0**-18
# Shares, values and results of attention are float16: each is off by 2^-11 of itself.
NEAR_HALF = 2.0**-9
# A lane's sum is brought to a larger logit some ten times, each by a factor off by 2^-22.
NEAR_LIKELIHOOD = 1e-5

# Queries and keys of the sample of attention: more than a tile of each, and no multiple.
QUERIES, KEYS = 150, 333


def norms(width: int, device: torch.device) -> bool:
    """Whether norms of rows of `width` may be the kernel's."""
    return _check(
        f"rows of {width}",
        device,
        lambda x, weight: rows_triton.rms_norm_triton(x, weight, 1e-5),
        lambda x, weight: rows.rms_norm_reference(x, weight, 1e-5),
        lambda: (_normal(3, width), _normal(width)),
        "the RMS norm",
    )


def gates(activation: Activation, device: torch.device) -> bool:
    """Whether gates may be the kernel's."""
    return _check(
        activation,
        device,
        lambda gate, up: rows_triton.gated_triton(gate, up, activation),
        lambda gate, up: rows.gated_reference(gate, up, activation),
        lambda: (4 * _normal(3, 1371), _normal(3, 1371)),
        "the gate",
    )


def turns(
    shape: tuple[int, int], pairs: int, neighbours: bool, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether `pairs` of heads of `shape` may be turned by the kernel."""
    kind = f"{pairs} {'neighbours' if neighbours else 'halves'} of {list(shape)} as {dtype}"

    def wanted(x: Tensor, turn: Tensor) -> Tensor:
        return rows.rotate_reference(x, turn, neighbours=neighbours).to(dtype)

    return _check(
        kind,
        device,
        lambda *at: rows_triton.rotate_triton(*at, neighbours=neighbours, dtype=dtype),
        wanted,
        lambda: (
            _normal(3, *shape),
            torch.polar(torch.ones(3, 1, pairs), _normal(3, 1, pairs)),
        ),
        "RoPE",
        NEAR if dtype is torch.float32 else NEAR_HALF,
    )


def attention(
    head_dim: int, group: int, window: bool, cap: bool, device: torch.device, *, own: bool
) -> bool:
    """Whether attention may be the kernel's, if `own`, else torch's in float16."""
    count, limits = QUERIES if own else KEYS, (50 if window else 0, 7.0 if cap else 0.0)
    scale = head_dim**-0.5
    run = attention_triton if own else causal.attention_torch
    return _check(
        f"{group} heads of {head_dim} a group, {window=}, {cap=}",
        device,
        lambda q, k, v: run(q, k, v, scale, *limits),
        lambda q, k, v: causal.attention_reference(q, k, v, scale, *limits),
        lambda: (
            _normal(1, count, 2 * group, head_dim).half(),
            _normal(1, KEYS, 2, head_dim, seed=1).half(),
            _normal(1, KEYS, 2, head_dim, seed=2).half(),
        ),
        "attention" if own else "torch's attention",
        NEAR_HALF,
    )


def likelihoods(device: torch.device) -> bool:
    """Whether likelihoods may be the kernel's."""

    def joined(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
        return lambda *at: torch.stack([part.double() for part in run(*at)])

    return _check(
        "float32",
        device,
        joined(rows_triton.likelihood_triton),
        joined(rows.likelihood_reference),
        lambda: (4 * _normal(6, 5003), torch.tensor([0, 5002, 7, 1024, 1023, 5001])),
        "the likelihood",
        # Of the largest number there is, which is a place.
        NEAR_LIKELIHOOD / 5003,
    )


def _check(
    kind: str,
    device: torch.device,
    got: Callable[..., Tensor],
    wanted: Callable[..., Tensor],
    sample: Callable[[], tuple[Tensor, ...]],
    name: str,
    near: float = NEAR,
) -> bool:
    """Whether `got` of the sample on `device` is as near to `wanted` of it on the CPU, in its
    largest difference as a share of the largest value."""

    def same(found: Tensor, expected: Tensor) -> bool:
        off = (found.double() - expected.double()).abs().max()
        return found.shape == expected.shape and bool(off <= near * expected.double().abs().max())

    return verified(
        name,
        kind,
        device,
        lambda: got(*(part.to(device) for part in sample())),
        lambda: wanted(*sample()),
        same,
    )


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
