"""Small adapters as PEFT saves them, the same bytes on every machine, for small checkpoints."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support import checkpoints, zoo_build
from support.adapters import base_of
from torch import Tensor

RANK = 4
CARD = "---\nlicense: mit\nbase_model: org/base-7b\ntags:\n- lora\n---\nAn adapter.\n"


@dataclass(frozen=True)
class Adapted:
    """A checkpoint of support/checkpoints.py or support/zoo.py and what is adapted of it: weights
    whose names end so. `ranks` are those that are not `RANK`, by the end of a module's name."""

    base: str
    ends: tuple[str, ...]
    ranks: Mapping[str, int] = field(default_factory=dict)
    types: tuple[str, ...] = ("F32", "Q8_0")


LINEAR = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))
ADAPTED = {
    "llama": Adapted(
        "narrow-heads",
        (*LINEAR, "embed_tokens.weight", "lm_head.weight"),
        types=("F32", "F16", "BF16", "Q8_0"),
    ),
    "llama-tied": Adapted("tied", LINEAR),
    "llama-ranks": Adapted("plain", LINEAR, {"q_proj": 32, "down_proj": 3}),
    "qwen2": Adapted("qwen2-tied", LINEAR),
    "qwen3": Adapted("qwen3-untied", LINEAR),
    "phi": Adapted("phi4", ("qkv_proj.weight", "o_proj.weight", "gate_up_proj.weight")),
    "gemma": Adapted("gemma", LINEAR),
    "qwen3-moe": Adapted("qwen3-moe-12", (*LINEAR, "mlp.gate.weight")),
    "mixtral": Adapted(
        "mixtral-12", (*LINEAR, "gate.weight", "w1.weight", "w2.weight", "w3.weight")
    ),
}


def build(name: str, root: Path) -> tuple[Path, Path]:
    """Write checkpoint and adapter `name` into `root`; their folders."""
    adapted = ADAPTED[name]
    maker = checkpoints if adapted.base in checkpoints.VARIANTS else zoo_build
    base = maker.build(adapted.base, root)
    folder = root / f"{name}-lora"
    folder.mkdir()
    source = random.Random(name)
    tensors: dict[str, Tensor] = {}
    for tensor, shape in base_of(base).tensors.items():
        if tensor.endswith(adapted.ends) and len(shape) == 2:
            module = tensor.removesuffix(".weight")
            rank = adapted.ranks.get(module.rpartition(".")[2], RANK)
            tensors |= _pair(source, f"base_model.model.{module}", shape, rank)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 6, "rank_pattern": dict(adapted.ranks),
        "target_modules": sorted({end.removesuffix(".weight") for end in adapted.ends}),
        "base_model_name_or_path": f"org/{adapted.base}",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(CARD)
    return base, folder


def _pair(source: random.Random, name: str, shape: tuple[int, ...], rank: int) -> dict[str, Tensor]:
    rows, width = shape
    if name.endswith("embed_tokens"):
        return {
            f"{name}.lora_embedding_A": _values(source, rank, rows),
            f"{name}.lora_embedding_B": _values(source, width, rank),
        }
    return {
        f"{name}.lora_A.weight": _values(source, rank, width),
        f"{name}.lora_B.weight": _values(source, rows, rank),
    }


def _values(source: random.Random, rows: int, width: int) -> Tensor:
    """Numbers of 16 bits, so that halves have to be rounded."""
    data = source.randbytes(2 * rows * width)
    numbers = torch.frombuffer(bytearray(data), dtype=torch.int16).view(rows, width)
    return numbers.float() / (1 << 17)
