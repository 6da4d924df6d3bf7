"""Checkpoints of the zoo with their linear weights in small packed numbers, which are random: NVFP4
as ModelOpt and compressed-tensors write it, whole numbers as compressed-tensors and GPTQ do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.zoo_build import build

Tensors = dict[str, torch.Tensor]
GROUP = 32


def random_ints(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def words(*shape: int) -> torch.Tensor:
    """int32 of any bits."""
    return random_ints(*shape[:-1], 4 * shape[-1]).view(torch.int32)


def _nvfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of numbers [out, in / 2], and scales of 16 each as E4M3 [out, in / 16], no NaN."""
    rows, width = weight.shape
    scales = random_ints(rows, width // 16, low=0x20, high=0x40).view(torch.float8_e4m3fn)
    return random_ints(rows, width // 2), scales


def modelopt(stem: str, weight: torch.Tensor) -> Tensors:
    numbers, scales = _nvfp4(weight)
    one = "k_proj" in stem  # some have a scale of one, which is not written
    return {
        f"{stem}weight": numbers, f"{stem}weight_scale": scales,
        f"{stem}weight_scale_2": torch.tensor(1.0) if one else 0.01 + torch.rand(()) / 64,
        f"{stem}input_scale": torch.rand(()) + 0.5,
    }  # fmt: skip


def nvfp4_packed(stem: str, weight: torch.Tensor) -> Tensors:
    numbers, scales = _nvfp4(weight)
    return {
        f"{stem}weight_packed": numbers, f"{stem}weight_scale": scales,
        f"{stem}weight_global_scale": 60 + torch.rand(1),
        f"{stem}input_global_scale": torch.rand(1) + 0.5,
    }  # fmt: skip


def pack(bits: int, *, zeros: bool = False) -> Callable[[str, torch.Tensor], Tensors]:
    def change(stem: str, weight: torch.Tensor) -> Tensors:
        (rows, width), a_word = weight.shape, 32 // bits
        found = {
            f"{stem}weight_packed": words(rows, -(-width // a_word)),
            f"{stem}weight_scale": (torch.rand(rows, width // GROUP) / 64).to(torch.bfloat16),
            f"{stem}weight_shape": torch.tensor([rows, width]),
        }
        if zeros:
            found[f"{stem}weight_zero_point"] = words(-(-rows // a_word), width // GROUP)
        return found

    return change


def int8(stem: str, weight: torch.Tensor) -> Tensors:
    rows = len(weight)
    return {
        f"{stem}weight": random_ints(*weight.shape).view(torch.int8),
        f"{stem}weight_scale": (torch.rand(rows, 1) / 1024).to(torch.bfloat16),
    }


def gptq(bits: int) -> Callable[[str, torch.Tensor], Tensors]:
    def change(stem: str, weight: torch.Tensor) -> Tensors:
        (rows, width), a_word = weight.shape, 32 // bits
        groups = torch.arange(width, dtype=torch.int32) // GROUP
        return {
            f"{stem}qweight": words(width // a_word, rows),
            f"{stem}qzeros": words(width // GROUP, rows // a_word),
            f"{stem}scales": (torch.rand(width // GROUP, rows) / 64).to(torch.float16),
            f"{stem}g_idx": groups[torch.randperm(width)],
        }

    return change


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip


def _whole(bits: int) -> dict[str, Any]:
    return _compressed(
        "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=GROUP
    )


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
# What becomes of each linear weight, and what config.json says of that.
FORMS: dict[str, tuple[Callable[[str, torch.Tensor], Tensors], dict[str, Any]]] = {
    "modelopt": (modelopt, MODELOPT),
    "modelopt-w4a16": (modelopt, {**MODELOPT, "quant_algo": "W4A16_NVFP4"}),
    "nvfp4-packed": (nvfp4_packed, _compressed("nvfp4-pack-quantized")),
    "pack-4": (pack(4), _whole(4)),
    "pack-4-zeros": (pack(4, zeros=True), _whole(4)),
    "pack-8": (pack(8), _whole(8)),
    "int-8": (int8, _compressed("int-quantized", num_bits=8, type="int", strategy="channel")),
    "gptq-4": (gptq(4), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq-8": (gptq(8), {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}),
}


def build_packed(animal: str, form: str, root: Path) -> Path:
    """Write checkpoint `animal` of the zoo in `form` into a folder in `root`; that folder."""
    change, said = FORMS[form]
    folder = build(animal, root / form)
    torch.manual_seed(len(form))
    found: Tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        linear = name.endswith("_proj.weight") and weight.ndim == 2
        found |= change(name.removesuffix("weight"), weight) if linear else {name: weight}
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return folder


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpacked(found: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 `[rows, numbers]` of int32 `[rows, words]`."""
    words = found.long() & 0xFFFFFFFF
    parts = [(words >> (bits * i)) & ((1 << bits) - 1) for i in range(32 // bits)]
    return torch.stack(parts, -1).flatten(1)


def decoded(parts: Tensors, form: str) -> torch.Tensor:
    """float32 `[out, in]`: the weight that `parts`, by their names' ends, stand for."""
    said = FORMS[form][1]
    if "qweight" in parts:
        bits, groups = said["bits"], parts["g_idx"].long()
        less = said.get("checkpoint_format", "gptq") == "gptq"
        numbers = unpacked(parts["qweight"].t(), bits)  # [out, in]
        zeros = unpacked(parts["qzeros"], bits) + less
        return parts["scales"].float()[groups].t() * (numbers - zeros[groups].t()).float()
    if "weight_shape" in parts:
        (bits,) = (group["weights"]["num_bits"] for group in said["config_groups"].values())
        rows, width = parts["weight_shape"].tolist()
        numbers = unpacked(parts["weight_packed"], bits)[:, :width]
        zeros = torch.full((rows, width // GROUP), 1 << (bits - 1))
        if "weight_zero_point" in parts:
            zeros = unpacked(parts["weight_zero_point"].t(), bits).t()[:rows]
        scales = parts["weight_scale"].float().repeat_interleave(GROUP, 1)
        return (numbers - zeros.repeat_interleave(GROUP, 1)).float() * scales
    if form == "int-8":
        return parts["weight"].float() * parts["weight_scale"].float()
    codes = parts["weight_packed" if "weight_packed" in parts else "weight"].long()
    # A zero has no sign, as in llama.cpp.
    table = torch.tensor([*E2M1, *(0.0 - v for v in E2M1)])
    numbers = table[torch.stack([codes & 15, codes >> 4], -1).flatten(1)]
    found = numbers * parts["weight_scale"].float().repeat_interleave(16, 1)
    if "weight_global_scale" in parts:
        return found * (1 / parts["weight_global_scale"])
    return found * parts["weight_scale_2"]


def build_decoded(packed: Path, form: str, root: Path) -> Path:
    """The checkpoint `packed` of `form` in float32, in a folder in `root`; that folder."""
    folder = root / f"{packed.name}-{form}"
    shutil.copytree(packed, folder)
    found: Tensors = {}
    linear: dict[str, Tensors] = {}
    for name, tensor in load_file(packed / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        if stem.endswith("_proj"):
            linear.setdefault(stem, {})[end] = tensor
        else:
            found[name] = tensor
    for stem, parts in linear.items():
        found[f"{stem}.weight"] = decoded(parts, form).contiguous()
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    return folder
