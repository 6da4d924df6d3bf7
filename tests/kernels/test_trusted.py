"""Kernels of the forward pass prove themselves before they are used, and step aside where they do
not; here in the interpreter."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from gpukit_kernels import causal, forward_ops, rows_triton, trusted, verified

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHECKS: dict[str, Callable[[], bool]] = {
    "rms_norm_triton": lambda: trusted.norms(96, DEVICE),
    "gated_triton": lambda: trusted.gates("gelu_tanh", DEVICE),
    "rotate_triton": lambda: trusted.turns((3, 64), 32, True, torch.float16, DEVICE),
    "likelihood_triton": lambda: trusted.likelihoods(DEVICE),
    "attention_triton": lambda: trusted.attention(32, 2, True, True, DEVICE, own=True),
    "attention_torch": lambda: trusted.attention(32, 2, False, False, DEVICE, own=False),
}
PLACES = {"attention_triton": trusted, "attention_torch": causal}


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known, and the interpreter may compute with the garbage in masked lanes."""
    monkeypatch.setattr(verified, "_known", {})
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_prove_themselves(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert CHECKS[name]()
    assert not caplog.records


@pytest.mark.parametrize("name", CHECKS)
def test_a_wrong_kernel_is_not_used(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = PLACES.get(name, rows_triton)
    right = getattr(place, name)

    def wrong(*given: torch.Tensor, **more: object) -> object:
        found = right(*given, **more)
        (found[0] if isinstance(found, tuple) else found).view(-1)[-1] += 1
        return found

    monkeypatch.setattr(place, name, wrong)
    assert not CHECKS[name]()
    assert not CHECKS[name]()
    (line,) = caplog.messages
    assert "differs from the reference in " in line
    assert "gpukit uses the slower path" in line


def test_what_fails_everywhere_is_done_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, turn = torch.randn(5, 4, 32), torch.polar(torch.ones(5, 1, 16), torch.randn(5, 1, 16))
    q, k = torch.randn(1, 3, 4, 32).half(), torch.randn(1, 9, 2, 32).half()
    targets = torch.arange(5)

    def all_of_it() -> list[torch.Tensor]:
        return [
            forward_ops.rms_norm(x, x[0, 0], 1e-5),
            forward_ops.gated(x.clone(), x, "silu"),
            forward_ops.rotate(x, turn, neighbours=True, dtype=torch.float16),
            forward_ops.attention(q, k, k, 0.2),
            forward_ops.attention(q, k, k, 0.2, 2, 3.0),
            *forward_ops.likelihood(x.view(5, -1), targets),
        ]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such device")

    wanted = all_of_it()
    monkeypatch.setattr(forward_ops, "_triton", lambda x: True)
    by_kernels = all_of_it()
    monkeypatch.setattr(verified, "_known", {})
    for name in CHECKS:
        monkeypatch.setattr(PLACES.get(name, rows_triton), name, broken)
    for got in (by_kernels, all_of_it()):
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype is other.dtype
            assert torch.allclose(one.float(), other.float(), rtol=0, atol=2e-3)
