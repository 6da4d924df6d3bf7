"""Kernels are compared with the reference before a GPU's bytes are theirs, and have a way around.

No GPU is needed: what is asked for a GPU is asked for the CPU here, in the interpreter.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gpukit_kernels import (
    QUANTS,
    Factors,
    QuantType,
    dequantize,
    launch,
    merge_lora,
    ops,
    proven,
    quantize,
    verified,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(verified, "_known", {})
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize(("name", "weighted"), [("Q8_0", False), ("MXFP4", False), ("Q4_0", True)])
def test_encoders_are_right(
    name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proven, "WIDTH", 256)
    assert proven.encoder_verified(QUANTS[name], torch.bfloat16, weighted, DEVICE)
    assert not caplog.records


@pytest.mark.parametrize("name", ["Q5_0", "Q5_K", "IQ2_XXS", "IQ4_XS", "MXFP4"])
def test_decoders_are_right(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert launch.decoder_verified(QUANTS[name], torch.float16, DEVICE)
    assert not caplog.records


@pytest.mark.parametrize(
    ("row", "kind", "width", "lengths"),
    [("BF16", "BF16", 512, [False]), ("F32", "F16", 30, [False, True])],
)
def test_merges_are_right(
    row: str,
    kind: str,
    width: int,
    lengths: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(proven, "ROWS", 4)
    assert proven.merger_verified(QUANTS[row], QUANTS[kind], width, lengths, DEVICE)
    assert not caplog.records


def test_the_hard_values_are_hard() -> None:
    values = proven.hard_values(QUANTS["Q4_0"]).view(-1, 32)
    assert values.half().isfinite().all()
    assert (values == 0).all(dim=1).any()
    assert (values[1].signbit()).any()
    assert not (values[1].signbit()).all()
    assert (values.abs().amax(dim=1) < 2.0**-126).any()


def test_a_wrong_decoder_is_passed_by(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(blocks: Tensor, row: QuantType, out: Tensor) -> None:
        out.zero_()

    monkeypatch.setattr(launch, "_decode_pieces", wrong)
    monkeypatch.setattr(launch, "decodes", launch.decoder_verified)
    blocks = quantize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), "Q4_1")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = dequantize(blocks.to(DEVICE), "Q4_1", backend="triton").cpu()
            assert torch.equal(got, dequantize(blocks, "Q4_1", backend="eager"))
    (record,) = caplog.records
    assert "decoding to float32 for Q4_1" in record.getMessage()


def test_encoders_and_merges_that_are_wrong_are_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("encodes", "merges"):
        monkeypatch.setattr(ops.proven, name, lambda *_: False)
    monkeypatch.setattr(launch, "encode_triton", None)
    random = torch.Generator().manual_seed(0)
    values = torch.randn(2, 4, 64, generator=random)
    wanted = quantize(values, "Q5_0", backend="eager")
    assert torch.equal(quantize(values.to(DEVICE), "Q5_0", backend="triton").cpu(), wanted)
    importance = torch.rand(64, generator=random)
    wanted = quantize(values, "Q5_0", importance, backend="eager")
    got = quantize(values.to(DEVICE), "Q5_0", importance.to(DEVICE), backend="triton")
    assert torch.equal(got.cpu(), wanted)
    b, a = torch.randn(2, 4, 3, generator=random), torch.randn(2, 3, 64, generator=random)
    wanted = merge_lora(values, [Factors(b, a, 0.5)], out="Q8_0", backend="eager")
    there = [Factors(b.to(DEVICE), a.to(DEVICE), 0.5)]
    got = merge_lora(values.to(DEVICE), there, out="Q8_0", backend="triton")
    assert torch.equal(got.cpu(), wanted)
