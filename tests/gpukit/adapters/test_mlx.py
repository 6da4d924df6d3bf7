"""Adapters of mlx-lm against its own formulas, which `fuse` of each of its layers has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import apply, base_of, check_same, model, quiet
from torch import Tensor

from gpukit.adapters.opening import open_adapter
from gpukit.errors import AdapterError

RANK = 3
LORA: dict[str, Any] = {
    "fine_tune_type": "lora", "num_layers": 1, "model": "base",
    "lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0},
}  # fmt: skip
LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def _base(root: Path, family: str) -> dict[str, Tensor]:
    with quiet():
        model(family).save_pretrained(root / "base")
    return load_file(root / "base" / "model.safetensors")


def _write(root: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    folder = root / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _merged(root: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with open_adapter(root / "adapter", base_of(root / "base")) as adapter:
        assert not adapter.warnings
        assert not adapter.added
        return apply(stored, adapter)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_linear_layers_and_the_embedding(kind: str, family: str, tmp_path: Path) -> None:
    stored = _base(tmp_path, family)
    tensors, wanted = {}, {}
    for module in LINEAR:
        name = f"model.layers.1.{module}"
        rows, width = stored[f"{name}.weight"].shape
        a, b, m = _random(width, RANK), _random(RANK, rows), _random(rows).abs()
        weight = stored[f"{name}.weight"] + (20.0 * b.T) @ a.T
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        if kind == "dora":
            tensors[f"{name}.m"] = m
            weight = (m / weight.norm(dim=1))[:, None] * weight
        wanted[f"{name}.weight"] = weight
    name = "model.embed_tokens"
    a, b, m = _random(40, RANK), _random(RANK, 16), _random(40).abs()
    weight = stored[f"{name}.weight"] + (20.0 * a) @ b
    tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    if kind == "dora":
        tensors[f"{name}.m"] = m
        weight = (m / weight.norm(dim=1))[:, None] * weight
    wanted[f"{name}.weight"] = weight
    _write(tmp_path, tensors, {**LORA, "fine_tune_type": kind})
    found = _merged(tmp_path, stored)
    check_same(found, wanted)
    assert {key for key in stored if not found[key].equal(stored[key])} == wanted.keys()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_experts(flat: bool, fused: bool, tmp_path: Path) -> None:
    stored = _base(tmp_path, "mixtral")
    at, tensors, wanted = "model.layers.1.block_sparse_moe", {}, {}
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    for matrix, short in names.items():
        weights = torch.stack([stored[f"{at}.experts.{n}.{short}.weight"] for n in range(3)])
        _, rows, width = weights.shape
        a, b = _random(3, RANK, width), _random(3, rows, RANK)
        whole = weights + (20.0 * b) @ a
        tensors[f"{at}.switch_mlp.{matrix}.lora_a"] = a.view(-1, width) if flat else a
        tensors[f"{at}.switch_mlp.{matrix}.lora_b"] = b
        wanted |= {f"{at}.experts.{n}.{short}.weight": whole[n] for n in range(3)}
    if fused:
        stored, wanted = _fuse(stored), _fuse(wanted)
        save_file(stored, tmp_path / "base" / "model.safetensors")
    _write(tmp_path, tensors, LORA)
    check_same(_merged(tmp_path, stored), wanted)


def _fuse(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The experts of layer 1 as transformers 5 has them in memory."""
    old, new = "model.layers.1.block_sparse_moe.experts", "model.layers.1.mlp.experts"
    w1, w2, w3 = (
        torch.stack([stored[f"{old}.{n}.{w}.weight"] for n in range(3)]) for w in ("w1", "w2", "w3")
    )
    rest = {name: values for name, values in stored.items() if old not in name}
    return {**rest, f"{new}.gate_up_proj": torch.cat([w1, w3], 1), f"{new}.down_proj": w2}


def test_the_first_versions_scaled_by_alpha_over_rank_too(tmp_path: Path) -> None:
    stored, name = _base(tmp_path, "llama"), "model.layers.0.self_attn.v_proj"
    a, b = _random(16, RANK), _random(RANK, 8)
    old = {"rank": RANK, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}
    config = {"lora_layers": 4, "lora_parameters": old, "model": "org/base"}
    _write(tmp_path, {f"{name}.lora_a": a, f"{name}.lora_b": b}, config)
    wanted = stored[f"{name}.weight"] + (160.0 / RANK) * (a @ b).T
    check_same(_merged(tmp_path, stored), {f"{name}.weight": wanted})


def test_a_full_fine_tune_takes_the_place(tmp_path: Path) -> None:
    stored = _base(tmp_path, "gemma3")
    tensors = {k: _random(*v.shape) for k, v in stored.items() if ".layers.1." in k}
    _write(tmp_path, tensors, {"fine_tune_type": "full", "num_layers": 1})
    found = _merged(tmp_path, stored)
    check_same(found, tensors)
    assert found["model.embed_tokens.weight"].equal(stored["model.embed_tokens.weight"])


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"lora_parameters": {"rank": 4, "scale": 1.0}}, "its rank is 3, .* says 4"),
    "no-scale": ({"lora_parameters": {"rank": 3}}, "scale in lora_parameters is None; a"),
    "no-parameters": ({"lora_parameters": None}, "no lora_parameters"),
    "rank-huge": ({"lora_parameters": {"rank": 10**9, "scale": 1}}, "rank is 10{9}; 1048576 at"),
    "scale-huge": (
        {"lora_parameters": {"rank": 3, "scale": 1e30, "alpha": 1e30}},
        r"a scale of 3.3\S+ \(alpha",
    ),
    "rank-0": ({"lora_parameters": {"rank": 0, "scale": 1.0}}, "rank is 0; a whole number above"),
    "kind": ({"fine_tune_type": "loha"}, "fine_tune_type is 'loha'; known: lora, dora, full"),
    "dora": ({"fine_tune_type": "dora"}, "no m for fine_tune_type dora"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_makes_no_sense_is_refused(case: str, tmp_path: Path) -> None:
    _base(tmp_path, "llama")
    changes, message = BROKEN[case]
    name = "model.layers.0.self_attn.v_proj"
    tensors = {f"{name}.lora_a": _random(16, RANK), f"{name}.lora_b": _random(RANK, 8)}
    _write(tmp_path, tensors, {**LORA, **changes})
    with pytest.raises(AdapterError, match=message):
        open_adapter(tmp_path / "adapter", base_of(tmp_path / "base"))
