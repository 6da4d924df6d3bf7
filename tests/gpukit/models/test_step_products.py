"""Linear maps of one input become one product: the same rows, in memory that both share."""

import pytest
import torch
from support import quant_kinds

from gpukit.models.step_products import joined
from gpukit.models.weights import Linear, Site, Weight
from gpukit_kernels import QUANTS, dequantize

WIDTH = 512


def linear(kind: str, rows: int, seed: int, bias: bool = False) -> Linear:
    blocks = quant_kinds.blocks_of(QUANTS[kind], rows, WIDTH, seed=seed).clone()
    more = torch.zeros(rows) if bias else None
    return Linear(Weight(blocks, kind, WIDTH), Site("w", 0, rows), more)


def rows_of(products: list[Linear]) -> list[int]:
    return [len(product.weight.blocks) for product in products]


def test_one_type_is_one_product_and_one_piece_of_memory() -> None:
    q, k, v = (linear("Q4_K", rows, rows) for rows in (8, 3, 5))
    wanted = [dequantize(each.weight.blocks, "Q4_K") for each in (q, k, v)]
    (whole,) = joined((q, k, v))
    assert torch.equal(dequantize(whole.weight.blocks, "Q4_K"), torch.cat(wanted))
    begin = whole.weight.blocks.data_ptr()
    for each, values in zip((q, k, v), wanted, strict=True):
        assert each.weight.blocks.data_ptr() == begin
        assert torch.equal(dequantize(each.weight.blocks, "Q4_K"), values)
        begin += each.weight.blocks.numel()
    # What lies so already is not copied again.
    (again,) = joined((q, k, v))
    assert again.weight.blocks.data_ptr() == whole.weight.blocks.data_ptr()


def test_what_does_not_go_together_stays_alone() -> None:
    q, k = linear("Q4_K", 8, 1), linear("Q4_K", 4, 2)
    assert rows_of(joined((q, k, linear("Q6_K", 4, 3)))) == [12, 4]
    assert rows_of(joined((q, linear("Q6_K", 4, 3), k))) == [8, 4, 4]
    assert rows_of(joined((q, linear("Q4_K", 4, 3, bias=True), k))) == [8, 4, 4]
    assert rows_of(joined((linear("F16", 4, 1), linear("F16", 4, 2)))) == [4, 4]


def test_products_that_are_not_to_be_trusted_stay_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_prepared(*asked: object) -> bool:
        return asked[-1] != 12

    monkeypatch.setattr("gpukit.models.step_products.has_prepared", has_prepared)
    q, k = linear("Q4_K", 8, 1), linear("Q4_K", 4, 2)
    before = k.weight.blocks.data_ptr()
    assert rows_of(joined((q, k))) == [8, 4]
    assert k.weight.blocks.data_ptr() == before
