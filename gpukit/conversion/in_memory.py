"""What a plan would write, in memory: a model of another type without a file."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit.conversion.pipeline import run_pipeline
from gpukit.events import Report, ignore
from gpukit.planning.plan import PlannedOutput, QuantizePlan
from gpukit.sources.base import Source
from gpukit_kernels.devices import Device


class _Memory:
    """A writer whose file is one tensor of bytes for each output."""

    def __init__(self, outputs: Sequence[PlannedOutput]) -> None:
        self.blocks = [torch.empty(output.spec.nbytes, dtype=torch.uint8) for output in outputs]

    in_order = False

    def write(self, index: int, data: memoryview, start: int) -> None:
        """Take the bytes of an output from position `start` on; any thread, every byte once."""
        part = self.blocks[index].numpy()[start : start + data.nbytes]
        part[:] = memoryview(data).cast("B")


def planned_blocks(
    source: Source,
    plan: QuantizePlan,
    *,
    device: Device = "auto",
    budget: int = 4 << 30,
    report: Report = ignore,
) -> list[Tensor]:
    """uint8 `[rows, row_bytes]` on the host for each of the plan's outputs: the bytes that a file
    would hold. Arguments and errors as those of `run_plan`."""
    memory = _Memory(plan.outputs)
    run_pipeline(source, plan.outputs, memory, plan.title, device, budget, report, "torch")
    return [
        blocks.view(output.spec.rows, output.spec.row_bytes)
        for blocks, output in zip(memory.blocks, plan.outputs, strict=True)
    ]
