"""Devices as callers name them, without torch: importing it takes seconds."""

import sys
from typing import TYPE_CHECKING, TypeAlias

from gpukit_kernels.errors import QuantError, unlike

if TYPE_CHECKING:
    import torch

# auto, cpu, cuda or cuda:N, or, where several are taken, those with commas between; None is auto.
Device: TypeAlias = "str | torch.device | None"


def device_name(given: "Device") -> str:
    """The name of `given`; `QuantError` for what can be no device."""
    if given is None:
        return "auto"
    torch = sys.modules.get("torch")  # else nobody can have a device of it
    if torch is not None and isinstance(given, torch.device):
        return "cpu" if given.type == "cpu" else str(given)
    if not isinstance(given, str):
        raise QuantError(unlike("a device such as 'auto', 'cpu' or 'cuda:0'", given))
    return given
