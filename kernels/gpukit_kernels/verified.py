"""Kernels beside the reference on the device they are for, before anybody uses them there.

What a compiler makes of a kernel differs between compilers and devices. So at its first use in a
process a kernel computes a small fixed sample, which the reference computes on the CPU, too.
"""

import logging
from collections.abc import Callable
from threading import RLock

import torch
from torch import Tensor

from gpukit_kernels.table import QuantType

_log = logging.getLogger(__name__)
_lock = RLock()
_known: dict[tuple[str, str, str], bool] = {}

Comparison = Callable[[Tensor, Tensor], bool]


def same_bytes(got: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors have one shape, one dtype and the same bits."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    flat = [t.contiguous().view(-1).view(torch.uint8) for t in (got, wanted)]
    return torch.equal(*flat)


def within(allowed: Tensor) -> Comparison:
    """Whether each value is off by what `allowed` says at most; a NaN never is."""

    def compare(got: Tensor, wanted: Tensor) -> bool:
        off = (got.double() - wanted.double()).abs()
        return got.shape == wanted.shape and bool((off <= allowed).all())

    return compare


def verified(
    kernel: str,
    kind: str,
    device: torch.device,
    got: Callable[[], Tensor],
    wanted: Callable[[], Tensor],
    same: Comparison = same_bytes,
) -> bool:
    """Whether `kernel` for the type `kind` computes on `device` what the reference does.

    The first call of a process for the three runs `got`, on the device, and `wanted`, and compares
    both on the CPU; later ones know. Where they differ, or `got` raises, that is one line of
    warning, and False for good: the caller goes another way. While a CUDA graph is recorded nothing
    can be compared: what is not known then is False for now, so ask before.
    """
    key = (kernel, kind, str(device))
    with _lock:
        if key in _known:
            return _known[key]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        fault = _fault(got, wanted, same)
        if fault:
            _log.warning(
                "%s for %s on %s %s; gpukit uses the slower path; please report this",
                kernel, kind, device, fault,
            )  # fmt: skip
        _known[key] = not fault
        return not fault


def refused() -> list[str]:
    """What was found wrong in this process: kernel, type and device of each."""
    return [" ".join(key) for key, right in _known.items() if not right]


def _fault(got: Callable[[], Tensor], wanted: Callable[[], Tensor], same: Comparison) -> str:
    """What is wrong, in words that follow a name; empty where nothing is."""
    try:
        found = got().cpu()
    except Exception as error:
        return f"fails ({' '.join(str(error).split())[:200] or type(error).__name__})"
    expected = wanted().cpu()
    if same(found, expected):
        return ""
    if found.shape != expected.shape:
        return f"gives {list(found.shape)} for {list(expected.shape)}"
    wrong = int((found != expected).sum())
    return f"differs from the reference in {wrong} of {found.numel()} places"


def sample(row: QuantType, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """On the CPU uint8 `[rows, row_bytes]`, any bytes whose values are finite, and those, float32
    `[rows, width]`: the same every time."""
    random = torch.Generator().manual_seed(0)
    count = rows * (width // row.block)
    blocks = torch.randint(0, 256, (count, row.nbytes), dtype=torch.uint8, generator=random)
    values = row.decode(blocks.t().contiguous()).t()  # [count, block]
    # Float types have values that no product of some thousand survives.
    fit = values.isfinite().all(dim=1) & (values.abs() < 2.0**40).all(dim=1)
    blocks = torch.where(fit[:, None], blocks, torch.zeros_like(blocks))
    # Not just zeros: a level below the center times a step of zero is -0.
    values = row.decode(blocks.t().contiguous()).t()
    return blocks.view(rows, -1), values.reshape(rows, width)
