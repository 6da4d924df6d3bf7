"""What a checkpoint becomes, read in slabs as the pipeline reads it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gpukit.sources.checkpoint import CheckpointSource
from gpukit.sources.steps import Step


def tensors(folder: Path, steps: Sequence[Step], step: int) -> dict[str, torch.Tensor]:
    """Every tensor of the GGUF to be in float32, read in slabs of about `step` rows."""
    found = {}
    with CheckpointSource(folder, steps=steps) as source:
        for index, tensor in enumerate(source.tensors):
            group, rows = tensor.row_group, tensor.rows
            size = max(step // group, 1) * group
            slabs = []
            for row in range(0, rows, size):
                count = min(size, rows - row)
                data = torch.empty(source.stored_bytes(index, count, row), dtype=torch.uint8)
                source.read(index, row, memoryview(data.numpy()))
                slabs.append(source.values(index, row, count, data).to(torch.float32))
            found[tensor.name] = torch.cat(slabs)
    return found
