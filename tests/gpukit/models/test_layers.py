"""The feed forward of many rows, some at a time."""

from dataclasses import replace

import pytest
import torch
from support import quant_kinds

from gpukit.models.layers import TOGETHER, GatedFeedForward
from gpukit.models.weights import Linear, Site, Weight
from gpukit_kernels import QUANTS


def linear(kind: str, rows: int, width: int, seed: int) -> Linear:
    blocks = quant_kinds.blocks_of(QUANTS[kind], rows, width, seed=seed).clone()
    return Linear(Weight(blocks, kind, width), Site("w", 0, rows))


def feed_forward(kind: str, between: int) -> GatedFeedForward:
    gate, up = (linear(kind, between, 256, seed) for seed in (1, 2))
    return GatedFeedForward(gate, up, linear(kind, 256, between, 3))


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("count", [2 * TOGETHER, 2 * TOGETHER + 5])
def test_many_rows_give_what_few_give(kind: str, count: int) -> None:
    whole = feed_forward(kind, 512)
    x = torch.randn(count, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(x), torch.cat([whole(some) for some in x.chunk(3)]))


def test_what_observes_sees_all_rows_at_once() -> None:
    seen: list[int] = []
    whole = feed_forward("BF16", 512)
    gate = replace(whole.gate, observe=lambda x: seen.append(len(x)))
    replace(whole, gate=gate)(torch.zeros(2 * TOGETHER, 256))
    assert seen == [2 * TOGETHER]
