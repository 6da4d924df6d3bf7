"""GGUF adapters with random numbers, written by gguf."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor


def write_adapter(
    path: Path,
    arch: str,
    adapted: Mapping[str, Sequence[int]],
    alpha: float | None,
    rank: int,
    *,
    seed: int = 0,
    size: float = 1.0,
    **fields: str,
) -> dict[str, tuple[Tensor, Tensor]]:
    """A GGUF adapter of the tensors `adapted` (shapes outermost first); its A and B, numbers
    of about `size`."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {"general.type": "adapter", "adapter.type": "lora", **fields}.items():
        writer.add_string(key.replace("__", "."), value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    torch.manual_seed(seed)
    found = {}
    for name, (*stack, rows, width) in adapted.items():
        a, b = torch.randn(*stack, rank, width) * size, torch.randn(*stack, rows, rank) * size
        found[name] = a, b
        # llama.cpp looks tokens up in A.
        if name == "token_embd.weight":
            a, b = b, a.t()
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a.numpy()))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found
