"""Copies beside what is computed; without a GPU they are among it."""

import pytest
import torch

from gpukit_kernels import side, verified

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_places_hold_what_was_copied_last() -> None:
    copies = side.side_of(DEVICE)
    hosts = [torch.full((side.BYTES,), n, dtype=torch.uint8) for n in (3, 4, 5)]
    found = side._passed(copies, hosts, DEVICE)
    assert found[:, 999].tolist() == [3, 4, 5] * side.PASSES
    assert torch.equal(found, found[:, :1].expand_as(found))


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no CUDA device")
def test_wrong_copies_are_not_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verified, "_known", {})
    monkeypatch.setattr(side.Side, "join", lambda self, number: 1 / 0)
    assert side.side_of(DEVICE)._stream is None
    assert "copies for layers that come from the host" in caplog.text
