"""LoRA adapters as PEFT writes them for any checkpoint, with random numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gpukit.formats.checkpoint import Checkpoint

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora(
    base: Path,
    out: Path,
    *,
    rank: int = 4,
    targets: Sequence[str] = LINEAR,
    seed: int = 0,
    by: float = 0.2,
    **settings: Any,
) -> Path:
    """Write an adapter of the modules of `base` whose names end in one of `targets` to `out`, its
    numbers about `by`; `settings` go into adapter_config.json."""
    random, found = torch.Generator().manual_seed(seed), {}
    with Checkpoint(base) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] in targets and len(tensor.shape) == 2:
                rows, width = tensor.shape
                for end, shape in (("A", (rank, width)), ("B", (rows, rank))):
                    values = torch.randn(shape, generator=random) * by
                    found[f"base_model.model.{module}.lora_{end}.weight"] = values
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name,
        "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), **settings,
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "adapter_config.json").write_text(json.dumps(config))
    save_file(found, out / "adapter_model.safetensors")
    return out
