"""A kernel that differs from the reference is found out once, and told of in one line."""

import logging

import pytest
import torch
from torch import Tensor

from gpukit_kernels import QUANTS, verified
from gpukit_kernels.verified import same_bytes, sample, within

CPU = torch.device("cpu")
RIGHT = torch.arange(6.0)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_known", {})


def test_a_right_kernel_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def got() -> Tensor:
        asked.append(1)
        return RIGHT.clone()

    for _ in range(3):
        assert verified.verified("sums", "Q4_K", CPU, got, lambda: RIGHT)
    assert len(asked) == 1
    assert verified.verified("sums", "Q6_K", CPU, got, lambda: RIGHT)
    assert len(asked) == 2
    assert not caplog.records


def test_a_wrong_kernel_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    wrong = RIGHT + torch.tensor([0, 0, 1e-3, 0, 0, 0])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not verified.verified("sums", "Q4_K", CPU, lambda: wrong, lambda: RIGHT)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("sums for Q4_K on cpu differs from the reference in 1 of 6 places;")
    assert "slower path" in line
    assert "\n" not in line


def test_a_kernel_that_raises_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    def got() -> Tensor:
        raise RuntimeError("ptxas:\n  no such register")

    assert not verified.verified("sums", "Q4_K", CPU, got, lambda: RIGHT)
    assert "sums for Q4_K on cpu fails (ptxas: no such register);" in caplog.text


def test_comparisons() -> None:
    near = RIGHT + 1e-4
    assert same_bytes(RIGHT, RIGHT.clone())
    assert not same_bytes(RIGHT, near)
    assert not same_bytes(RIGHT, RIGHT.double())
    assert not same_bytes(RIGHT, RIGHT[:3])
    assert not same_bytes(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert within(torch.full((6,), 2e-4))(near, RIGHT)
    assert not within(torch.full((6,), 5e-5))(near, RIGHT)
    assert not within(torch.full((6,), torch.inf))(RIGHT * torch.nan, RIGHT)


@pytest.mark.parametrize("name", list(QUANTS))
def test_samples_are_finite_and_of_many_values(name: str) -> None:
    row = QUANTS[name]
    blocks, values = sample(row, 16, 1024)
    assert blocks.shape == (16, row.row_bytes(1024))
    assert values.isfinite().all()
    assert (values.abs().amax(dim=1) > 0).all()
    assert torch.equal(sample(row, 16, 1024)[0], blocks)
