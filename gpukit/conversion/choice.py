"""Which engine computes: the one place where the caller's wish is answered."""

from collections.abc import Sequence
from typing import Any

from gpukit.conversion.engine import Engine, Wish
from gpukit.errors import ArgumentError
from gpukit.planning.plan import PlannedOutput
from gpukit.sources.base import Source
from gpukit_kernels.cpu import plain
from gpukit_kernels.devices import Device


def choose_engine(
    source: Source, outputs: Sequence[PlannedOutput], device: Device, wish: Wish = "auto"
) -> Engine[Any, Any]:
    """The engine for a pass; `device` may name several for torch, `cuda:0,cuda:1`.

    `ArgumentError` where numpy is wished for and cannot do all, and for a device that is not there.
    """
    if wish == "numpy" or (wish == "auto" and plain.is_cpu(device)):
        # Another device needs nothing of it.
        from gpukit.conversion.numpy_engine import plain_conversion

        found = plain_conversion(source, outputs, device)
        if not isinstance(found, str):
            return found
        if wish == "numpy":
            raise ArgumentError(f"{source.path}: without torch {found}; engine 'torch' does it")
    # Importing torch takes seconds: only where it is needed.
    from gpukit.conversion.torch_engine import tensor_conversion

    return tensor_conversion(source, outputs, device)
