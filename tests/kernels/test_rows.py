"""Norms, gates, turns, attention and likelihoods: the kernels against their torch references, which
the models' own tests hold against transformers.

A float32 operation errs by 2^-24 of its result; the largest chain here has some thirty of them.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gpukit_kernels import causal, forward_ops, rows
from gpukit_kernels.causal_triton import attention_triton
from gpukit_kernels.rows_triton import (
    gated_triton,
    likelihood_triton,
    rms_norm_triton,
    rotate_triton,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEAR = 32 * 2.0**-24


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns about the garbage in masked lanes."""
    with np.errstate(all="ignore"):
        yield


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(got: Tensor, wanted: Tensor, within: float = NEAR) -> None:
    assert got.shape == wanted.shape
    assert got.dtype is wanted.dtype
    assert (got - wanted).abs().max() <= within * wanted.abs().max()


@pytest.mark.parametrize(("count", "width"), [(3, 4096), (37, 128), (5, 96), (1, 5000), (0, 64)])
def test_norms(count: int, width: int) -> None:
    x, weight = normal(count, width), normal(width, seed=2)
    if count:
        x[0] = 0  # eps alone is under the root
        assert_near(rms_norm_triton(x, weight, 1e-5), rows.rms_norm_reference(x, weight, 1e-5))
    assert rms_norm_triton(x, weight, 1e-5).shape == x.shape


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates(activation: rows.Activation) -> None:
    gate, up = 5 * normal(3, 1371), normal(3, 1371, seed=2)
    gate[0, :4] = torch.tensor([-1e4, 1e4, -0.0, math.inf])
    wanted = rows.gated_reference(gate.clone(), up, activation)
    got = gated_triton(gate, up, activation)
    assert got[0, 3] == wanted[0, 3]
    assert_near(got[:, 4:], wanted[:, 4:])
    assert_near(got[:, :3], wanted[:, :3])


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("count", "heads", "width", "pairs"), [(3, 5, 64, 32), (2, 33, 128, 64), (4, 2, 96, 20)]
)
def test_turns(
    count: int, heads: int, width: int, pairs: int, dtype: torch.dtype, neighbours: bool
) -> None:
    x = normal(count, heads, width)
    turns = torch.polar(torch.full((count, 1, pairs), 1.2), normal(count, 1, pairs).cpu())
    turns = turns.to(DEVICE)
    wanted = rows.rotate_reference(x, turns, neighbours=neighbours).to(dtype)
    got = rotate_triton(x, turns, neighbours=neighbours, dtype=dtype)
    assert_near(got, wanted, NEAR if dtype is torch.float32 else 2.0**-10)


@pytest.mark.parametrize(
    ("batch", "count", "length", "heads", "kv_heads", "head_dim", "window", "cap"),
    [
        (2, 150, 150, 4, 2, 64, 0, 0.0),
        (1, 70, 333, 6, 2, 96, 0, 0.0),
        (1, 130, 300, 2, 1, 128, 37, 0.0),
        (1, 1, 99, 4, 4, 32, 0, 30.0),
        (2, 140, 140, 2, 2, 128, 50, 5.0),
        (1, 70, 70, 2, 1, 256, 0, 0.0),
        (1, 5, 5, 2, 1, 8, 1, 0.0),
    ],
)
def test_attention(
    batch: int,
    count: int,
    length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    cap: float,
) -> None:
    """Shares are float16 beside values: each is off by 2^-11 of itself, and so is their sum."""
    q = normal(batch, count, heads, head_dim).half()
    # As a cache holds them: heads first, with room behind, which is never looked at.
    k, v = (
        torch.full((batch, kv_heads, length + 7, head_dim), math.nan, device=DEVICE).half()
        for _ in range(2)
    )
    k, v = k[:, :, :length].transpose(1, 2), v[:, :, :length].transpose(1, 2)
    k.copy_(normal(batch, length, kv_heads, head_dim, seed=2))
    v.copy_(normal(batch, length, kv_heads, head_dim, seed=3))
    got = attention_triton(q, k, v, 0.2, window, cap)
    wanted = causal.attention_reference(q, k, v, 0.2, window, cap)
    assert_near(got, wanted, 2.0**-11)
    # What comes out is rounded once more.
    by_torch = causal.attention_torch(q, k, v, 0.2, window, cap)
    assert_near(by_torch, wanted, 2.0**-10)


@pytest.mark.parametrize("cap", [0.0, 9.0])
def test_torch_attends_in_pieces(cap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (normal(1, 50, 2, 16, seed=seed).half() for seed in (1, 2, 3))
    found = {}
    for run in (causal.attention_reference, causal.attention_torch):
        found[run] = run(q, k, v, 0.25, 20, cap)
        with monkeypatch.context() as patch:
            patch.setattr(causal, "SCORES", 7 * 50)
            assert_near(run(q, k, v, 0.25, 20, cap), found[run])
    assert_near(*found.values(), 2.0**-10)


def test_a_sink_is_a_key_of_no_value() -> None:
    q, k, v = (
        normal(1, 50, heads, 16, seed=seed).half() for seed, heads in ((1, 4), (2, 2), (3, 2))
    )
    sinks = 2 * normal(4)
    found = forward_ops.attention(q, k, v, 0.25, 20, 0.0, sinks)
    # A key in a dimension of its own, which queries see by the score of their sink.
    query = torch.cat((q.float(), 4 * sinks[:, None].expand(1, 50, 4, 1)), 3)
    key = torch.cat((k.float(), torch.zeros(1, 50, 2, 1, device=DEVICE)), 3)
    sink = torch.zeros(1, 1, 2, 17, device=DEVICE)
    sink[..., 16] = 1
    for at in range(50):
        seen = slice(max(at - 19, 0), at + 1)
        keys = torch.cat((sink, key[:, seen]), 1).repeat_interleave(2, 2)
        values = torch.cat((torch.zeros_like(sink[..., :16]), v[:, seen].float()), 1)
        scores = torch.einsum("bhd,bkhd->bhk", query[:, at], keys) * 0.25
        wanted = torch.einsum(
            "bhk,bkhd->bhd", scores.softmax(-1), values.repeat_interleave(2, 2)
        ).flatten(1)
        assert_near(found[:, at], wanted)


def test_gates_past_their_limits() -> None:
    gate = torch.tensor([-9.0, -1.0, 0.5, 7.0, 9.0], device=DEVICE)
    up = torch.tensor([9.0, -9.0, 2.0, 7.0, -1.0], device=DEVICE)
    capped = torch.tensor([-9.0, -1.0, 0.5, 7.0, 7.0], device=DEVICE)
    wanted = (
        capped
        / (1 + torch.exp(-1.702 * capped))
        * torch.tensor([8.0, -6.0, 3.0, 8.0, 0.0], device=DEVICE)
    )
    assert_near(forward_ops.gated(gate, up, "swiglu_oai"), wanted)


@pytest.mark.parametrize("vocab", [1, 1023, 5003])
def test_likelihoods(vocab: int) -> None:
    """A lane's sum is brought to a larger logit some times, each by a factor off by 2^-23."""
    logits = 4 * normal(6, vocab)
    logits[1, 0], logits[2, -1] = math.nan, math.inf
    logits[3, : vocab // 2] = -math.inf
    logits[4] = logits[4].sort().values  # every step has a larger one
    targets = torch.tensor([0, 0, 0, vocab - 1, vocab // 2, vocab - 1], device=DEVICE)
    got = likelihood_triton(logits, targets)
    wanted = rows.likelihood_reference(logits, targets)
    good = torch.tensor([0, 3, 4, 5], device=DEVICE)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype is other.dtype
        assert (one[good] - other[good]).abs().max() <= 1e-6
    assert got[0][1:3].isfinite().tolist() == [False, False]
