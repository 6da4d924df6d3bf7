"""Adapters whose form is not that of a GGUF are brought into it: parts, experts, MLX, aLoRA."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import (
    LINEAR,
    apply,
    base_of,
    check_near,
    model,
    quiet,
    train,
)
from torch import Tensor

import gpukit
from gpukit.adapters.opening import open_adapter
from gpukit.formats.gguf_reader import GGUFFile


def _write(folder: Path, values: Mapping[str, Tensor], name: str, **config: Any) -> Path:
    folder.mkdir()
    save_file(dict(values), folder / name)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _pairs(shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    torch.manual_seed(2)
    found = {}
    for name, (rows, width) in shapes.items():
        rank = next(rank for end, rank in ranks.items() if name.endswith(end))
        found[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, width)
        found[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank)
    return found


def test_parts_of_one_tensor_stand_side_by_side(tmp_path: Path) -> None:
    with quiet():
        model("phi3").save_pretrained(tmp_path / "base")
    layer = "model.layers.1.self_attn"
    shapes = {f"{layer}.q_proj": (16, 16), f"{layer}.k_proj": (8, 16), f"{layer}.v_proj": (8, 16)}
    ranks = {"q_proj": 2, "k_proj": 3, "v_proj": 1}
    adapter = _write(
        tmp_path / "lora", _pairs(shapes, ranks), "adapter_model.safetensors",
        peft_type="LORA", r=2, lora_alpha=4, rank_pattern=ranks, alpha_pattern={"v_proj": 5},
        target_modules=[*ranks],
    )  # fmt: skip
    base = base_of(tmp_path / "base")
    result = gpukit.write_adapter(adapter, tmp_path / "base", out := tmp_path / "x.gguf")
    assert (result.ranks, result.pairs, result.folded) == ((6,), 1, 1)
    stored = load_file(tmp_path / "base" / "model.safetensors")
    with open_adapter(adapter, base) as first, open_adapter(out, base) as second:
        wanted, found = apply(stored, first), apply(stored, second)
    assert not wanted[f"{layer}.qkv_proj.weight"].equal(stored[f"{layer}.qkv_proj.weight"])
    check_near(found, wanted, 2e-6)


def test_fused_parts_of_one_module_share_a(tmp_path: Path) -> None:
    with quiet():
        model("llama").save_pretrained(tmp_path / "base")
    shapes = {"model.layers.0.self_attn.qkv_proj": (32, 16)}
    adapter = _write(
        tmp_path / "lora", _pairs(shapes, {"qkv_proj": 2}), "adapter_model.safetensors",
        peft_type="LORA", r=2, lora_alpha=4, target_modules=["qkv_proj"],
    )  # fmt: skip
    result = gpukit.write_adapter(adapter, tmp_path / "base", tmp_path / "x.gguf")
    assert (result.ranks, result.pairs, result.folded) == ((2,), 3, 0)
    with quiet():
        model("phi3").save_pretrained(tmp_path / "phi3")
    result = gpukit.write_adapter(adapter, tmp_path / "phi3", tmp_path / "x.gguf")
    assert (result.ranks, result.pairs, result.folded) == ((2,), 1, 0)


def test_some_experts_alone(tmp_path: Path) -> None:
    with quiet():
        model("mixtral").save_pretrained(tmp_path / "base")
    stem = "model.layers.0.block_sparse_moe.experts"
    shapes = {f"{stem}.0.w1": (24, 16), f"{stem}.2.w1": (24, 16), f"{stem}.1.w2": (16, 24)}
    ranks = {"0.w1": 2, "2.w1": 3, "w2": 2}
    adapter = _write(
        tmp_path / "lora", _pairs(shapes, ranks), "adapter_model.safetensors",
        peft_type="LORA", r=2, lora_alpha=4, target_modules=["w1", "w2"],
        rank_pattern={"experts.2.w1": 3},
    )  # fmt: skip
    base = base_of(tmp_path / "base")
    result = gpukit.write_adapter(adapter, tmp_path / "base", out := tmp_path / "x.gguf")
    # Of a stack all experts have the largest rank.
    assert (result.ranks, result.pairs, result.folded) == ((2, 3), 2, 1)
    stored = load_file(tmp_path / "base" / "model.safetensors")
    with open_adapter(adapter, base) as first, open_adapter(out, base) as second:
        check_near(apply(stored, second), apply(stored, first), 2e-6)


def test_mlx(tmp_path: Path) -> None:
    with quiet():
        model("llama").save_pretrained(tmp_path / "base")
    values = {
        f"model.layers.1.self_attn.{name}.{end}": torch.randn(shape)
        for name, rows in (("q_proj", 16), ("k_proj", 8))
        for end, shape in (("lora_a", (16, 4)), ("lora_b", (4, rows)))
    }
    adapter = _write(
        tmp_path / "mlx", values, "adapters.safetensors",
        fine_tune_type="lora", num_layers=1, lora_parameters={"rank": 4, "scale": 20.0},
    )  # fmt: skip
    result = gpukit.write_adapter(adapter, tmp_path / "base", out := tmp_path / "x.gguf")
    assert (result.alpha, result.ranks, result.folded) == (80.0, (4,), 0)
    base, stored = base_of(tmp_path / "base"), load_file(tmp_path / "base" / "model.safetensors")
    with open_adapter(adapter, base) as first, open_adapter(out, base) as second:
        check_near(apply(stored, second), apply(stored, first), 2e-6)


def test_invocation_tokens_are_kept(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {"r": 2, "target_modules": LINEAR})
    path = made.adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), "alora_invocation_tokens": [7, 8, 9]}
    path.write_text(json.dumps(config))
    gpukit.write_adapter(made.adapter, made.base, out := tmp_path / "x.gguf")
    keys = ["adapter.lora.alpha", "adapter.alora.invocation_tokens", "general.quantization_version"]
    with GGUFFile(out) as file:
        assert list(file.fields)[-3:] == keys
        assert file.fields[keys[1]].value == [7, 8, 9]
    gpukit.write_adapter(out, made.base, again := tmp_path / "again.gguf")
    assert again.read_bytes() == out.read_bytes()
    with pytest.raises(gpukit.AdapterError, match="aLoRA works only behind"):
        open_adapter(out, base_of(made.base))
    path.write_text(json.dumps({**config, "alora_invocation_tokens": [-1]}))
    with pytest.raises(gpukit.GpukitError, match="alora_invocation_tokens"):
        gpukit.write_adapter(made.adapter, made.base, out)
