"""Deltas merged: every path gives the reference's bytes, and the reference PEFT's sum."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from gpukit_kernels import QUANTS, Factors, QuantError, dequantize, merge_lora, quantize
from gpukit_kernels.cpu import compiled
from gpukit_kernels.cpu.merge import by_program
from gpukit_kernels.merge import lengths, low_rank, merge

BACKENDS = ["eager", "compiled", "triton"]
WRITTEN = [name for name, row in QUANTS.items() if row.encode]


def searched(kind: str, backend: str) -> bool:
    """Whether the interpreter takes a second a block of `kind`."""
    pair = QUANTS[kind].triton
    return backend == "triton" and pair is not None and pair.nearest is not None


def each(kinds: Sequence[str]) -> list[ParameterSet]:
    """All of `kinds` on all backends; of those which Triton looks up one stands for the others."""
    return [
        pytest.param(
            kind,
            backend,
            marks=[pytest.mark.thorough] if searched(kind, backend) and kind != "IQ2_S" else [],
        )
        for backend in BACKENDS
        for kind in kinds
    ]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The interpreter computes with numpy, also where no block is."""
    with np.errstate(all="ignore"):
        yield


def drawn(*shape: int, seed: int = 0, by: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * by


def factors(shape: Sequence[int], ranks: Sequence[int], *, dora: bool = False) -> list[Factors]:
    """Adapters of some ranks for a weight of `shape`, the second with magnitudes if `dora`."""
    *stack, rows, width = shape
    found = []
    for n, rank in enumerate(ranks):
        b = drawn(*stack, rows, rank, seed=2 * n + 1, by=0.1)
        a = drawn(*stack, rank, width, seed=2 * n + 2, by=0.1)
        magnitude = drawn(*stack, rows, seed=99).abs() if dora and n == len(ranks) - 1 else None
        found.append(Factors(b, a, 0.3 + n, magnitude))
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_the_reference_is_the_sum_that_is_defined() -> None:
    b, a = drawn(2, 3), drawn(3, 5, seed=1)
    wanted = torch.empty(2, 5)
    for r in range(2):
        for c in range(5):
            total = torch.tensor(0.0)
            for k in range(3):
                total = total + b[r, k] * a[k, c]
            wanted[r, c] = total * torch.tensor(0.7)
    assert same(low_rank(b, a, 0.7), wanted)
    weight = drawn(2, 5, seed=2)
    assert same(merge(weight, [Factors(b, a, 0.7)]), weight + wanted)


def test_a_length_is_the_root_of_the_squares() -> None:
    for width in (1, 31, 32, 33, 1000):
        rows = drawn(7, width)
        wanted = rows.to(torch.float64).square().sum(1).sqrt()
        # 32 sums of width / 32 squares each, five more additions, a root.
        bound = (width / 32 + 8) * 2**-24
        assert ((lengths(rows) - wanted).abs() <= bound * wanted).all()
    rows = torch.tensor([[3.0, 4.0]])
    assert lengths(rows).tolist() == [5.0]


def test_the_sum_is_that_of_float64_within_its_rounding() -> None:
    weight, (f,) = drawn(40, 96), factors((40, 96), [16])
    exact = weight.double() + f.scale * (f.b.double() @ f.a.double())
    # rank products and sums, the scale, the weight: each rounds what has been summed so far.
    magnitudes = weight.abs().double() + f.scale * (f.b.abs().double() @ f.a.abs().double())
    bound = (16 + 3) * 2**-24 * magnitudes
    assert ((merge_lora(weight, [f]) - exact).abs() <= bound).all()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 63), (9, 257), (2, 3, 4, 40), (4, 530)])
def test_dense_weights(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    weight = drawn(*shape, seed=7).to(dtype)
    for ranks, dora in (((1,), False), ((3, 8), False), ((16,), True), ((2, 5), True)):
        some = factors(shape, ranks, dora=dora)
        wanted = merge(weight.to(torch.float32), some)
        assert same(merge_lora(weight, some, backend=backend), wanted)
        rounded = merge_lora(weight, some, out=dtype, backend=backend)
        assert same(rounded, wanted.to(dtype))


@cache
def merged_into(kind: str, rows: int, width: int) -> tuple[Tensor, list[Factors], Tensor]:
    """A weight, adapters, and what the reference makes of both: once for all backends."""
    weight = drawn(rows, width, seed=7).to(torch.bfloat16)
    some = factors(weight.shape, [4, 2], dora=True)
    return weight, some, quantize(merge(weight.to(torch.float32), some), kind, backend="eager")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("kind", "backend"), each(WRITTEN))
def test_into_blocks(kind: str, backend: str) -> None:
    block = QUANTS[kind].block
    rows, width = (2, block) if searched(kind, backend) else (5, 3 * block)
    weight, some, wanted = merged_into(kind, rows, width)
    assert same(merge_lora(weight, some, out=kind, backend=backend), wanted)


@cache
def merged_from(kind: str, rows: int) -> tuple[Tensor, list[Factors], Tensor, str, Tensor]:
    """Blocks, an adapter, both merged by the reference, and a type that those become: blocks."""
    row = QUANTS[kind]
    random = torch.Generator().manual_seed(3)
    if row.encode:
        blocks = quantize(drawn(rows, 2 * row.block, seed=7), kind, backend="eager")
    else:
        blocks = torch.randint(0, 60, (rows, 2 * row.nbytes), generator=random, dtype=torch.uint8)
    weight = dequantize(blocks, kind, backend="eager")
    some = factors(weight.shape, [3])
    wanted = merge(weight, some)
    back = kind if row.encode else "F16"
    return blocks, some, wanted, back, quantize(wanted, back, backend="eager")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("kind", "backend"), each(list(QUANTS)))
def test_from_blocks(kind: str, backend: str) -> None:
    rows = 1 if searched(kind, backend) else 3
    blocks, some, wanted, back, encoded = merged_from(kind, rows)
    assert same(merge_lora(blocks, some, kind, backend=backend), wanted)
    assert same(merge_lora(blocks, some, kind, back, backend=backend), encoded)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_one_size_become_those_of_another(backend: str) -> None:
    blocks = quantize(drawn(4, 512, seed=7), "Q8_0")
    some = factors((4, 512), [4], dora=True)
    wanted = quantize(merge(dequantize(blocks, "Q8_0"), some), "Q4_K")
    assert same(merge_lora(blocks, some, "Q8_0", "Q4_K", backend=backend), wanted)


@pytest.mark.parametrize("rank", [1, 2, 15, 64, 512])
def test_ranks(rank: int) -> None:
    weight, some = drawn(6, 200, seed=5), factors((6, 200), [rank])
    wanted = merge(weight, some)
    for backend in BACKENDS:
        assert same(merge_lora(weight, some, backend=backend), wanted)


@pytest.mark.parametrize("flags", ["-DGPUKIT_WIDTH=4", "-DGPUKIT_WIDTH=8"])
def test_narrow_vectors(
    flags: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUKIT_CFLAGS", flags)
    monkeypatch.setenv("GPUKIT_CACHE", str(tmp_path_factory.mktemp("programs")))
    add = by_program(compiled._made_merger())
    for rows, width in ((1, 3), (4, 64), (11, 300)):
        weight, some = drawn(rows, width), factors((rows, width), [5, 9], dora=True)
        assert same(add(weight.clone(), some), merge(weight, some))


def test_many_rows_on_several_threads() -> None:
    weight, some = drawn(3000, 320).to(torch.bfloat16), factors((3000, 320), [8])
    wanted = merge_lora(weight, some, backend="eager")
    assert same(merge_lora(weight, some), wanted)
    kept = merge_lora(weight, some, out="Q8_0")
    assert same(kept, quantize(wanted, "Q8_0"))


def test_the_weight_stays_as_it_was() -> None:
    weight, some = drawn(8, 64), factors((8, 64), [2, 3], dora=True)
    before = weight.clone()
    for backend in BACKENDS:
        merge_lora(weight, some, backend=backend)
        assert same(weight, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_in_nothing_out(backend: str) -> None:
    for shape in ((0, 64), (0, 3, 64)):
        f = factors(shape, [2])
        assert merge_lora(torch.zeros(shape), f, backend=backend).shape == shape
    assert same(merge_lora(drawn(3, 32), [], backend=backend), drawn(3, 32))


def test_what_does_not_fit_is_refused() -> None:
    weight, (f,) = drawn(4, 64), factors((4, 64), [2])
    for wrong, message in (
        (f._replace(b=f.b[:3]), r"b is \[3, 2\], a weight \[4, 64\] with rank 2 takes \[4, 2\]"),
        (f._replace(a=f.a[:, :3]), r"a is \[2, 3\].* takes \[2, 64\]"),
        (f._replace(a=f.a.double()), "a is torch.float64"),
        (f._replace(magnitude=drawn(3)), r"magnitude is \[3\]"),
    ):
        with pytest.raises(QuantError, match=message):
            merge_lora(weight, [wrong])
    with pytest.raises(QuantError, match="no type of a weight"):
        merge_lora(weight.double(), [f])
    with pytest.raises(QuantError, match="rows of 64 are no multiple of 256"):
        merge_lora(weight, [f], out="Q4_K")
    with pytest.raises(QuantError, match="IQ2_XXS needs importance"):
        merge_lora(weight, [f], out="IQ2_XXS")
    with pytest.raises(QuantError, match="uint8 blocks of Q8_0"):
        merge_lora(weight, [f], "Q8_0")
    with pytest.raises(QuantError, match="no multiple of 34"):
        merge_lora(torch.zeros((4, 33), dtype=torch.uint8), [f], "Q8_0")
    with pytest.raises(QuantError, match="unknown backend"):
        merge_lora(weight, [f], backend="numpy")
    with pytest.raises(QuantError, match=r"takes \[..., rows, width\]"):
        merge_lora(drawn(4), [f])
