"""What one token's step computes beside products: attention, norms, keys of logits."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gpukit_kernels.attend import attend_one, normed
from gpukit_kernels.attend_triton import SPLITS, Scratch, Shape, attend_triton
from gpukit_kernels.largest import keys_reference, of_keys
from gpukit_kernels.largest_triton import TILE, next_triton, tops_of
from gpukit_kernels.norm_triton import norm_triton
from gpukit_kernels.prepared_triton import Prepared

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Sums of up to 512 shares and 256 products in float32, each off by 2^-24 of itself, and
# exponentials by a few times that.
NEAR = 2e-5


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns about the garbage in masked lanes."""
    with np.errstate(all="ignore"):
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def values_of(prepared: Prepared) -> Tensor:
    """What prepared rows stand for, as they are multiplied."""
    groups = prepared.levels.cpu().float().view(prepared.rows, -1, 32)
    return (groups * prepared.steps.cpu()[:, :, None]).flatten(1)


# Heads, kv heads, values of a head, rotated ones, neighbours, filled positions, capacity, window,
# cap, norms. One key; more than a part; the last place; edges of windows; shared by 1 to 8.
SHAPES = [
    (4, 1, 64, 64, True, 0, 16, 0, 0.0, False),
    (2, 2, 128, 128, True, 1, 64, 0, 0.0, False),
    (8, 2, 128, 128, True, 200, 256, 0, 0.0, False),
    (7, 1, 64, 32, False, 127, 128, 0, 0.0, True),
    (8, 1, 96, 96, False, 64, 256, 0, 0.0, False),
    (3, 3, 80, 80, False, 200, 256, 40, 30.0, False),
    (3, 1, 80, 40, True, 39, 256, 40, 0.0, False),
    (4, 2, 64, 64, False, 40, 256, 40, 0.0, True),
    (2, 1, 64, 64, False, 255, 256, 200, 0.0, False),
    (2, 1, 256, 256, False, 70, 128, 0, 50.0, True),
    (6, 2, 16, 16, True, 65, 128, 0, 0.0, False),
    (5, 1, 8, 4, False, 127, 128, 1, 0.0, False),
]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float16) for case in SHAPES] + [(case, torch.float32) for case in SHAPES[:2]],
)
def test_attention_is_that_of_the_reference(case: tuple[int, ...], dtype: torch.dtype) -> None:
    heads, kv_heads, dim, rotated, pairs, filled, capacity, window, cap, with_norms = case
    q, k, v = drawn(heads * dim), drawn(kv_heads * dim, seed=1), drawn(kv_heads * dim, seed=2)
    keys, values = (drawn(kv_heads, capacity, dim, seed=n).to(dtype) for n in (3, 4))
    # What nobody has written yet is never looked at.
    keys[:, filled:], values[:, filled:] = torch.nan, torch.nan
    angles = drawn(capacity, rotated // 2, seed=5)
    turns = torch.stack((angles.cos(), angles.sin()), 2) * 1.1
    norms = (drawn(dim, seed=6), drawn(dim, seed=7)) if with_norms else None
    shape = Shape(heads, kv_heads, dim, rotated, bool(pairs), dim**-0.5, 1e-5, window, cap)
    given = keys.clone(), values.clone()
    wanted = attend_one(
        q, k, v, turns, *given, filled, pairs=bool(pairs), scale=shape.scale, eps=1e-5,
        window=window, cap=cap, norms=norms,
    )  # fmt: skip
    scratch = Scratch.of(shape, DEVICE)
    scratch.partial.fill_(torch.nan)
    out = torch.full((heads * dim,), torch.nan, device=DEVICE)
    prepared = Prepared.from_shape(1, heads * dim, DEVICE) if dim % 32 == 0 else None
    mine = keys.to(DEVICE), values.to(DEVICE)
    place = torch.tensor([filled], dtype=torch.int32, device=DEVICE)
    on_device = [x.to(DEVICE) for x in (q, k, v, turns)]
    weights = None if norms is None else (norms[0].to(DEVICE), norms[1].to(DEVICE))
    for _ in range(2):  # the second finds what the first has left
        attend_triton(*on_device, *mine, place, shape, scratch, out, prepared, weights)
        assert (out.cpu() - wanted).abs().max() < NEAR * wanted.abs().max()
        assert not scratch.arrived.any()
    for got, written in zip(mine, given, strict=True):
        assert torch.equal(got.cpu()[:, :filled], written[:, :filled])
        # float16 may round the other way where the last bit of float32 differs.
        assert torch.allclose(got.cpu()[:, filled].float(), written[:, filled].float(), rtol=2**-10)
        assert got[:, filled + 1 :].isnan().all()
    if prepared is not None:
        assert (values_of(prepared)[0] - wanted).abs().max() < 2**-14 * wanted.abs().max()


def test_parts_of_the_keys_do_not_outgrow_their_memory() -> None:
    shape = Shape(8, 2, 128, 128, True, 1.0)
    assert [shape.splits(n) for n in (16, 64, 65, 256, 4096, 1 << 20)] == [1, 1, 2, 4, 32, SPLITS]
    assert Shape(8, 2, 128, 128, True, 1.0, window=64).splits(1 << 20) == 1
    assert [Shape(n, 1, 64, 64, True, 1.0).heads_together for n in range(1, 9)] == [
        1, 2, 3, 4, 5, 3, 7, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("width", [32, 96, 256, 608, 4096])
@pytest.mark.parametrize("rows", [1, 3])
def test_norm(rows: int, width: int) -> None:
    x, add = drawn(rows, width), drawn(rows, width, seed=1)
    weight, post = drawn(width, seed=2), drawn(width, seed=3)
    for more, behind in ((None, None), (add, None), (add, post)):
        given = x.to(DEVICE).clone()
        out = torch.full((rows, width), torch.nan, device=DEVICE)
        prepared = Prepared.from_shape(rows, width, DEVICE)
        norm_triton(
            given, weight.to(DEVICE), 1e-5, out=out, prepared=prepared,
            add=None if more is None else more.to(DEVICE),
            post=None if behind is None else behind.to(DEVICE),
        )  # fmt: skip
        added = 0 if more is None else more if behind is None else normed(more, behind, 1e-5)
        wanted = normed(x + added, weight, 1e-5)
        assert (given.cpu() - (x + added)).abs().max() < 1e-5
        assert (out.cpu() - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert (values_of(prepared) - wanted).abs().max() < 2**-14 * wanted.abs().max()


def test_a_norm_of_a_width_that_is_no_whole_groups() -> None:
    x, weight = drawn(2, 50), drawn(50, seed=1)
    out = torch.empty(2, 50, device=DEVICE)
    norm_triton(x.to(DEVICE), weight.to(DEVICE), 1e-6, out=out)
    assert torch.allclose(out.cpu(), normed(x, weight, 1e-6), atol=1e-6)


def logits_of(count: int) -> Tensor:
    logits = drawn(count).round(decimals=1)
    logits[count // 2], logits[count // 3] = -0.0, 0.0
    return logits


@pytest.mark.parametrize("count", [1, 7, TILE, 3 * TILE + 5])
def test_keys_sort_as_logits_do(count: int) -> None:
    for logits in (logits_of(count), logits_of(count).abs().neg(), torch.zeros(count)):
        keys = keys_reference(logits)
        order = torch.sort(logits, descending=True, stable=True)
        found, places = of_keys(keys.sort(descending=True).values)
        assert torch.equal(found, order.values)
        assert torch.equal(places, order.indices)
        got = torch.zeros(count, dtype=torch.int64, device=DEVICE)
        tops = torch.zeros(tops_of(count), dtype=torch.int64, device=DEVICE)
        best, token = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
        next_triton(logits.to(DEVICE), got, tops, best, token)
        assert torch.equal(got.cpu(), keys)
        assert best.item() == keys.max().item()
        assert token.item() == of_keys(keys.max())[1].item()


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf])
def test_what_is_no_number_is_the_largest(value: float) -> None:
    logits = drawn(50)
    logits[20] = value
    found, place = of_keys(keys_reference(logits).max())
    assert not found.isfinite()
    assert place.item() == 20
