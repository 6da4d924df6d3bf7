"""Products of prepared rows by integers, in the interpreter off a GPU, against float64."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import quant_kinds
from torch import Tensor

from gpukit_kernels import QUANTS, QuantError, dense_triton, dequantize, matmul, vectors_triton
from gpukit_kernels.vectors_triton import (
    Prepared,
    allowed_error,
    gated,
    has_prepared,
    multiply_prepared,
    prepare,
)
from gpukit_kernels.verified import sample, within

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = [name for name, row in QUANTS.items() if has_prepared(row)]
Q4_K = QUANTS["Q4_K"]


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns about NaN and overflows."""
    with np.errstate(all="ignore"):
        yield


def rows_of(m: int, width: int) -> Tensor:
    """float32 `[m, width]` whose groups have many magnitudes."""
    random = torch.Generator().manual_seed(m)
    x = torch.randn(m, width // 32, 32, generator=random)
    return (x * torch.exp2(torch.randint(-9, 9, (m, width // 32, 1)))).view(m, width)


def test_prepared_values() -> None:
    x = rows_of(5, 96)
    x[1, :32] = 0.0
    x[2, 5], x[3, 40] = torch.nan, -torch.inf
    x[4] *= 1e-35
    p = prepare(x.to(DEVICE))
    levels, steps = p.levels.cpu().view(5, 3, 32), p.steps.cpu()
    back = (levels.double() * steps.double()[:, :, None]).view(5, 96)
    top = x.abs().view(5, 3, 32).amax(dim=2).double()[:, :, None].expand(5, 3, 32).reshape(5, 96)
    fine = torch.ones(5, 96, dtype=torch.bool)
    fine[2, :32] = fine[3, 32:64] = fine[4] = False
    assert ((back - x).abs() <= top / 65534 + x.abs() * 2.0**-22)[fine].all()
    assert levels.abs().amax() == 32767
    assert steps[2].isnan().tolist() == [True, False, False]
    assert steps[3].isnan().tolist() == [False, True, False]
    # Too small for a step that is a normal number: zeros.
    assert (back[4] == 0.0).all()
    sums = levels.double().view(5, 6, 16).sum(dim=2) * steps.double().repeat_interleave(2, dim=1)
    assert torch.allclose(p.sums.cpu().double(), sums, rtol=1e-6, atol=0.0, equal_nan=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("m", "rows", "blocks"), [(1, 1, 1), (2, 6, 3), (5, 3, 2)])
def test_products(name: str, m: int, rows: int, blocks: int) -> None:
    row = QUANTS[name]
    x = rows_of(m, blocks * row.block)
    packed = quant_kinds.blocks_of(row, rows, x.shape[1], seed=m)
    weights = dequantize(packed, name)
    product, off = x.double() @ weights.double().t(), allowed_error(x, weights)
    p, here = prepare(x.to(DEVICE)), packed.to(DEVICE)
    got = multiply_prepared(p, here, row)
    assert within(off)(got.cpu(), product)
    add = torch.randn(m, rows)
    out = add.clone().to(DEVICE)
    assert multiply_prepared(p, here, row, add=out, out=out) is out
    assert within(off + 2.0**-23 * (product + add).abs())(out.cpu(), product + add)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("m", "rows"), [(1, 3), (3, 4)])
def test_gated_products(activation: str, m: int, rows: int) -> None:
    x = rows_of(m, 512) / 64
    gate, up = (quant_kinds.blocks_of(Q4_K, rows, 512, seed=seed) for seed in (1, 2))
    out = torch.full((m, rows), torch.nan, device=DEVICE)
    got = gated(prepare(x.to(DEVICE)), gate.to(DEVICE), up.to(DEVICE), Q4_K, activation, out)
    assert got is out
    a, b = (x.double() @ dequantize(w, "Q4_K").double().t() for w in (gate, up))
    off = [allowed_error(x, dequantize(w, "Q4_K")) for w in (gate, up)]
    if activation == "silu":
        made = torch.nn.functional.silu(a)
    else:
        made = torch.nn.functional.gelu(a, approximate="tanh")
    slope = 1.2 * off[0]
    allowed = slope * b.abs() + (made.abs() + slope) * off[1] + 2.0**-16 * (made * b).abs()
    assert within(allowed)(got.cpu(), made * b)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0"])
def test_every_tile(name: str) -> None:
    row = QUANTS[name]
    width = 2 * row.block
    x, packed = rows_of(1, width), quant_kinds.blocks_of(row, 11, width)
    p, here = prepare(x.to(DEVICE)), packed.to(DEVICE)
    product, off = (
        x.double() @ dequantize(packed, name).double().t(),
        allowed_error(x, dequantize(packed, name)),
    )
    beside = gated(p, here, here, row, "silu", tile=vectors_triton.SHARED)
    for tile in vectors_triton.tiles_of(row, 1):
        assert within(off)(multiply_prepared(p, here, row, tile=tile).cpu(), product)
        assert torch.allclose(gated(p, here, here, row, "silu", tile=tile), beside, rtol=1e-5)


def test_tiles_by_shape() -> None:
    tiles = {
        (1, 128256, 4096): vectors_triton.NARROW,
        (1, 4096, 14336): vectors_triton.WIDE,
        (1, 1024, 4096): vectors_triton.LOW,
        (2, 4096, 4096): vectors_triton.SHARED,
    }
    for shape, tile in tiles.items():
        assert vectors_triton.tile_for(Q4_K, *shape) == tile
        assert tile in vectors_triton.tiles_of(Q4_K, shape[0])
    assert vectors_triton.tile_for(QUANTS["Q8_0"], 1, 128256, 4096) == vectors_triton.LOW
    assert vectors_triton.tile_for(QUANTS["Q4_0"], 1, 4096, 4096) == vectors_triton.LOW
    assert vectors_triton.tile_for(QUANTS["Q4_0"], 1, 128256, 4096) == vectors_triton.NARROW
    assert vectors_triton.tile_for(QUANTS["Q5_K"], 1, 128256, 4096) == vectors_triton.SHARED


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_zeros_and_nan_is_nan(name: str) -> None:
    row = QUANTS[name]
    x = torch.zeros(3, 2 * row.block)
    x[1, -1], x[2, 3] = torch.nan, torch.inf
    packed = quant_kinds.blocks_of(row, 5, x.shape[1])
    got = multiply_prepared(prepare(x.to(DEVICE)), packed.to(DEVICE), row).cpu()
    assert (got[0] == 0.0).all()
    assert got[1:].isnan().all()


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_0"])
def test_blocks_may_begin_anywhere(name: str) -> None:
    row = QUANTS[name]
    x = rows_of(2, 2 * row.block)
    packed = quant_kinds.blocks_of(row, 4, x.shape[1])
    p = prepare(x.to(DEVICE))
    wanted = multiply_prepared(p, packed.to(DEVICE), row)
    buffer = torch.zeros(packed.numel() + 3, dtype=torch.uint8, device=DEVICE)
    for shift in (1, 2):
        view = buffer[shift:][: packed.numel()].view_as(packed)
        view.copy_(packed)
        assert torch.equal(multiply_prepared(p, view, row), wanted)
    # One row on, which is a multiple of two bytes for some types only.
    assert torch.equal(multiply_prepared(p, packed.to(DEVICE)[1:], row), wanted[:, 1:])


def test_nothing() -> None:
    p = prepare(torch.zeros(0, 256, device=DEVICE))
    blocks = torch.zeros(3, 144, dtype=torch.uint8, device=DEVICE)
    assert multiply_prepared(p, blocks, Q4_K).shape == (0, 3)
    p = prepare(torch.zeros(2, 256, device=DEVICE))
    assert multiply_prepared(p, blocks[:0], Q4_K).shape == (2, 0)
    assert gated(p, blocks[:0], blocks[:0], Q4_K, "silu").shape == (2, 0)


def test_what_does_not_fit() -> None:
    p = prepare(torch.zeros(2, 256))
    blocks = torch.zeros(3, 144, dtype=torch.uint8)
    with pytest.raises(QuantError, match="F16 has no products"):
        multiply_prepared(p, blocks, QUANTS["F16"])
    with pytest.raises(QuantError, match=r"\[3, 288\].*256 needs rows of 144"):
        multiply_prepared(p, blocks.repeat(1, 2), Q4_K)
    with pytest.raises(QuantError, match=r"out is .*\[2, 4\].*\[2, 3\]"):
        multiply_prepared(p, blocks, Q4_K, out=torch.empty(2, 4))
    with pytest.raises(QuantError, match=r"add is \[3, 2\].*\[2, 3\]"):
        multiply_prepared(p, blocks, Q4_K, add=torch.empty(3, 2))
    with pytest.raises(QuantError, match=r"relu.*silu, gelu_tanh"):
        gated(p, blocks, blocks, Q4_K, "relu")
    with pytest.raises(QuantError, match="gate is"):
        gated(p, blocks, blocks[1:], Q4_K, "silu")
    with pytest.raises(QuantError, match="groups of 32"):
        prepare(torch.zeros(2, 40))
    with pytest.raises(QuantError, match=r"\[2, 256\], x is \[1, 256\]"):
        prepare(torch.zeros(1, 256), Prepared.from_shape(2, 256, "cpu"))


def test_exact_is_exact() -> None:
    x = rows_of(2, 256)
    blocks = quant_kinds.blocks_of(Q4_K, 5, 256)
    weights = dequantize(blocks, "Q4_K").double()
    wanted, room = x.double() @ weights.t(), x.double().abs() @ weights.abs().t()
    got = matmul(x.to(DEVICE), blocks.to(DEVICE), "Q4_K", backend="triton", exact=True)
    assert within(256 * 2.0**-24 * room)(got.cpu(), wanted)


def test_a_device_that_computes_otherwise_is_found_out() -> None:
    # What `has_prepared` and `is_right` compare, with a kernel that is wrong in one place.
    row = QUANTS["Q8_0"]
    assert row.triton is not None
    assert row.triton.vectors is not None
    tile = vectors_triton.LOW
    wanted, allowed = vectors_triton._trial(row, 1, 256, tile, None)
    assert within(allowed)(vectors_triton._trial(row, 1, 256, tile, DEVICE).cpu(), wanted)
    parts = replace(row.triton.vectors, signed=False)
    wrong = replace(row, triton=replace(row.triton, vectors=parts))
    assert not within(allowed)(vectors_triton._trial(wrong, 1, 256, tile, DEVICE).cpu(), wanted)
    blocks, weights = sample(row, 16, 256)
    x = rows_of(17, 256)
    right = dense_triton.multiply_dense(x.to(DEVICE), blocks.to(DEVICE), row).cpu()
    allowed = dense_triton.allowed_error(x, weights)
    assert within(allowed)(right, x.double() @ weights.double().t())
    other = dense_triton.multiply_dense(x.to(DEVICE), blocks.to(DEVICE), wrong).cpu()
    assert not within(allowed)(other, x.double() @ weights.double().t())
