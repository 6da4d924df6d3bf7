"""x @ W^T with W in blocks: the reference and the kernels against float64.

A sum of n products in float32, in any order, errs by at most n * 2^-24 of the sum of their
magnitudes (each product and each partial sum is rounded once). A GPU's kernels round operands
first: x to int16 (`vectors_triton.allowed_error`); or both to float16, by 2^-11 of themselves, so
that a product is off by 2^-10 + 2^-22.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support import quant_kinds
from torch import Tensor

from gpukit_kernels import (
    QUANTS,
    QuantError,
    dense_triton,
    dequantize,
    matmul,
    vectors_triton,
)
from gpukit_kernels.products_triton import FEW_ROWS, VECTOR_ROWS_OF_X, matmul_triton
from gpukit_kernels.verified import within

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = list(QUANTS)
SUM = 2.0**-24
HALVES = 2.0**-10 + 2.0**-22


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns about the garbage in masked lanes."""
    with np.errstate(all="ignore"):
        yield


def operands(name: str, count: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """x, `[count, width]`, and the blocks of W, `[rows, row_bytes]`."""
    random = torch.Generator().manual_seed(count + rows)
    x = torch.randn(count, width, generator=random)
    return x, quant_kinds.blocks_of(QUANTS[name], rows, width, seed=count)


def assert_product(got: Tensor, x: Tensor, blocks: Tensor, name: str, operand: float = 0.0) -> None:
    """`got` is x @ W^T, within what summing and an error of `operand` a product allow."""
    weights = dequantize(blocks, name).double()
    wanted = x.double() @ weights.t()
    room = x.double().abs() @ weights.abs().t()
    assert got.shape == wanted.shape
    assert got.dtype is torch.float32
    allowed = (x.shape[-1] * SUM + operand) * room
    assert ((got.cpu().double() - wanted).abs() <= allowed).all()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "rows", "width"), [(1, 700, 512), (3, 5, 256), (17, 33, 768)])
def test_reference(name: str, count: int, rows: int, width: int) -> None:
    x, blocks = operands(name, count, rows, width)
    assert_product(matmul(x, blocks, name), x, blocks, name)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "rows"), [(1, 5), (FEW_ROWS, 9), (17, 7)])
def test_kernels(name: str, count: int, rows: int) -> None:
    # Widths that are no multiple of what a program takes in one step.
    width = 768 if QUANTS[name].block > 32 else 608
    x, blocks = operands(name, count, rows, width)
    got = matmul_triton(x.to(DEVICE), blocks.to(DEVICE), QUANTS[name])
    if count <= VECTOR_ROWS_OF_X and vectors_triton.has_prepared(QUANTS[name]):
        weights = dequantize(blocks, name)
        allowed = vectors_triton.allowed_error(x, weights)
        assert within(allowed)(got.cpu(), x.double() @ weights.double().t())
    else:
        assert_product(got, x, blocks, name, HALVES if count > FEW_ROWS else 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_exact_kernels(name: str) -> None:
    width = 768 if QUANTS[name].block > 32 else 608
    x, blocks = operands(name, 5, 6, width)
    got = matmul_triton(x.to(DEVICE), blocks.to(DEVICE), QUANTS[name], exact=True)
    assert_product(got, x, blocks, name)


@pytest.mark.parametrize("name", ["IQ4_XS", "Q5_0", "BF16"])
def test_a_product_that_is_refused_is_made_of_decoded_values(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = 768 if QUANTS[name].block > 32 else 608
    x, blocks = operands(name, 17, 7, width)
    monkeypatch.setattr(dense_triton, "is_right", lambda *_: False)
    # Two rows at a time, and the last alone.
    monkeypatch.setattr(dense_triton, "SCRATCH", 2 * 4 * width)
    got = matmul_triton(x.to(DEVICE), blocks.to(DEVICE), QUANTS[name])
    assert_product(got, x, blocks, name)


def test_rows_are_taken_in_chunks() -> None:
    # More rows than one chunk of the reference decodes, and rows wider than a chunk.
    for rows, width in ((4097, 256), (3, 1 << 19)):
        x, blocks = operands("Q4_0", 2, rows, width)
        assert_product(matmul(x, blocks, "Q4_0"), x, blocks, "Q4_0")


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K"])
def test_shapes_strides_and_nothing(name: str) -> None:
    x, blocks = operands(name, 6, 10, 512)
    wanted = matmul(x, blocks, name)
    assert torch.equal(matmul(x.view(2, 3, 512), blocks, name), wanted.view(2, 3, 10))
    assert matmul(x[0], blocks, name).shape == (10,)
    assert_product(matmul(x.t().contiguous().t(), blocks, name), x, blocks, name)
    assert_product(matmul(x, blocks[::2], name), x, blocks[::2], name)
    assert matmul(x[:0], blocks, name).shape == (0, 10)
    assert matmul(x, blocks[:0], name).shape == (6, 0)
    assert torch.equal(matmul(x[:, :0], blocks[:, :0], name), torch.zeros(6, 10))
    for lead in (x[:0], x[:1]):
        few = matmul_triton(lead.to(DEVICE), blocks[:0].to(DEVICE), QUANTS[name])
        assert few.shape == (len(lead), 0)


@pytest.mark.parametrize("shift", [1, 4, 16])
def test_blocks_may_begin_at_any_byte(shift: int) -> None:
    x, blocks = operands("Q4_K", 2, 6, 768)
    buffer = torch.zeros(blocks.numel() + shift, dtype=torch.uint8, device=DEVICE)
    view = buffer[shift:].view_as(blocks)
    view.copy_(blocks)
    assert_product(matmul_triton(x.to(DEVICE), view, QUANTS["Q4_K"]), x, blocks, "Q4_K")


def test_no_row_of_x_sees_another() -> None:
    x, blocks = operands("Q6_K", 20, 9, 512)
    x[3] = torch.nan
    for got in (matmul(x, blocks, "Q6_K"), matmul_triton(x, blocks, QUANTS["Q6_K"])):
        assert got[3].isnan().all()
        assert got.isfinite().sum() == 19 * 9


def test_shape_function() -> None:
    x, blocks = operands("Q4_K", 4, 10, 256)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = matmul(mode.from_tensor(x), mode.from_tensor(blocks), "Q4_K")
    assert fake.shape == (4, 10)


@pytest.mark.parametrize(
    ("x", "blocks", "message"),
    [
        (
            torch.zeros(2, 256, dtype=torch.float16),
            torch.zeros(3, 144, dtype=torch.uint8),
            "float32",
        ),
        (torch.zeros(2, 256), torch.zeros(3, 144), "uint8"),
        (torch.zeros(2, 256), torch.zeros(144, dtype=torch.uint8), r"uint8 \[rows, bytes\]"),
        (torch.zeros(2, 512), torch.zeros(3, 144, dtype=torch.uint8), "144 bytes.*288"),
        (torch.zeros(2, 100), torch.zeros(3, 144, dtype=torch.uint8), "rows of 100"),
        (torch.zeros(()), torch.zeros(3, 144, dtype=torch.uint8), "scalar"),
    ],
)
def test_what_does_not_fit(x: Tensor, blocks: Tensor, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        matmul(x, blocks, "Q4_K")
