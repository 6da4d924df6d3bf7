"""Checkpoints whose weights are in blocks already, as llama.cpp's converter repacks them: MXFP4 as
gpt-oss has it, NVFP4 as ModelOpt and compressed-tensors write it. The numbers are random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.foreign import build

Tensors = dict[str, torch.Tensor]


def _random(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def _mxfp4(name: str, weight: torch.Tensor) -> Tensors:
    """Experts [E, in, out] as blocks [E, out, in / 32, 16] and scales [E, out, in / 32]."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return {name: weight}
    count, width, rows = weight.shape
    shape = (count, rows, width // 32)
    scales = _random(*shape, low=110, high=130)
    return {f"{name}_blocks": _random(*shape, 16), f"{name}_scales": scales}


def _nvfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of numbers [out, in / 2], and scales of 16 each as E4M3 [out, in / 16]."""
    rows, width = weight.shape
    # No NaN, which is 0x7f.
    scales = _random(rows, width // 16, low=0x20, high=0x7F).view(torch.float8_e4m3fn)
    return _random(rows, width // 2), scales


def _is_linear(name: str) -> bool:
    return name.endswith("_proj.weight") and ".layers." in name


def _modelopt(name: str, weight: torch.Tensor) -> Tensors:
    if not _is_linear(name):
        return {name: weight}
    numbers, scales = _nvfp4(weight)
    return {
        name: numbers, f"{name}_scale": scales, f"{name}_scale_2": torch.rand(()) + 0.5,
        name.replace(".weight", ".input_scale"): torch.rand(()) + 0.5,
    }  # fmt: skip


def _packed(name: str, weight: torch.Tensor) -> Tensors:
    if not _is_linear(name):
        return {name: weight}
    numbers, scales = _nvfp4(weight)
    return {
        f"{name}_packed": numbers, f"{name}_scale": scales,
        f"{name}_global_scale": torch.rand(1) + 0.5,
        name.replace(".weight", ".input_global_scale"): torch.rand(1) + 0.5,
    }  # fmt: skip


GROUPS = {"group_0": {"format": "nvfp4-pack-quantized", "targets": ["Linear"]}}
# The model, what becomes of each of its tensors, what config.json says of that, and the type of
# those in blocks.
BLOCKS: dict[str, tuple[str, Callable[[str, torch.Tensor], Tensors], dict[str, Any], str]] = {
    "mxfp4": ("GptOss", _mxfp4, {"quant_method": "mxfp4"}, "MXFP4"),
    "nvfp4": ("Arcee", _modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    "nvfp4-experts": (
        "Qwen2Moe", _modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"
    ),
    "nvfp4-packed": (
        "Qwen2Moe",
        _packed,
        {
            "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
            "config_groups": GROUPS,
        },
        "NVFP4",
    ),
}  # fmt: skip


def build_blocks(name: str, root: Path) -> Path:
    """Write checkpoint `name` into `root / name`; that folder."""
    animal, change, said, _ = BLOCKS[name]
    folder = build(animal, root / "plain").rename(root / name)
    torch.manual_seed(len(name))
    found: Tensors = {}
    for key, weight in load_file(folder / "model.safetensors").items():
        found |= change(key, weight)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = said
    (folder / "config.json").write_text(json.dumps(config))
    return folder
