"""The feed forward by halves: the sum of what each gives, where its parts only multiply."""

from dataclasses import replace

import pytest
import torch
from support import quant_kinds

from gpukit.models.layers import MANY, GatedFeedForward
from gpukit.models.weights import Linear, Site, Weight
from gpukit_kernels import QUANTS


def linear(kind: str, rows: int, width: int, seed: int) -> Linear:
    blocks = quant_kinds.blocks_of(QUANTS[kind], rows, width, seed=seed).clone()
    return Linear(Weight(blocks, kind, width), Site("w", 0, rows))


def feed_forward(kind: str, between: int) -> GatedFeedForward:
    gate, up = (linear(kind, between, 256, seed) for seed in (1, 2))
    return GatedFeedForward(gate, up, linear(kind, 256, between, 3))


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_halves_give_the_sum(kind: str) -> None:
    whole = feed_forward(kind, 512)
    x = torch.randn(MANY, 256, generator=torch.Generator().manual_seed(0))
    # A bias of nothing keeps it whole.
    bare = replace(whole, down=replace(whole.down, bias=torch.zeros(256)))
    found, wanted = whole(x), bare(x)
    assert whole._halves is not None
    assert bare._halves is None
    # Sums of 512 products in another order, and operands of many rows with 16 bits.
    torch.testing.assert_close(found, wanted, rtol=0, atol=float(wanted.abs().max()) * 2**-14)
    assert torch.equal(whole(x[:2]), bare(x[:2]))


def test_half_a_block_is_not_cut() -> None:
    assert feed_forward("Q8_0", 32)._halves is None
