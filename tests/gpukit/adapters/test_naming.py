"""One adapter and one base, whatever names and layouts they were written with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import (
    LINEAR,
    Trained,
    apply,
    base_of,
    check_same,
    model,
    ours,
    quiet,
    reloaded,
    train,
)
from torch import Tensor

from gpukit.adapters.experts import Layout
from gpukit.adapters.opening import open_adapter
from gpukit.errors import AdapterError

PLAIN: dict[str, Any] = {"r": 2, "lora_alpha": 5}
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", **PLAIN}


def _write(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> None:
    """A folder of PEFT with `tensors` in it."""
    folder.mkdir(exist_ok=True)
    save_file(
        {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "begin", ["", "base_model.model.", "base_model.model.model.language_model"]
)
def test_prefixes_tell_nothing(begin: str, tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "target_modules": LINEAR})
    tensors = load_file(made.adapter / "adapter_model.safetensors")
    plain = "base_model.model.model" if begin.endswith("language_model") else "base_model.model."
    renamed = {key.replace(plain, begin, 1): values for key, values in tensors.items()}
    save_file(renamed, made.adapter / "adapter_model.safetensors")
    check_same(ours(made)[0], made.expected())


def test_a_base_without_the_first_part_of_its_names(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "target_modules": LINEAR})
    stored = {name.removeprefix("model."): values for name, values in made.stored().items()}
    save_file(stored, made.base / "model.safetensors")
    expected = {name.removeprefix("model."): values for name, values in made.expected().items()}
    check_same(ours(made)[0], expected)


def _mixtral(tmp_path: Path) -> Trained:
    """A Mixtral with an adapter of transformers 4: a pair for each matrix of each expert."""
    made = Trained(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with quiet():
        model("mixtral").save_pretrained(made.base)
    tensors = {}
    for layer in range(2):
        moe = f"base_model.model.model.layers.{layer}.block_sparse_moe."
        shapes = {f"experts.{n}.{w}": (24, 16) for n in range(3) for w in ("w1", "w3")}
        shapes |= {f"experts.{n}.w2": (16, 24) for n in range(3)} | {"gate": (3, 16)}
        for name, (rows, width) in shapes.items():
            tensors[f"{moe}{name}.lora_A.weight"] = _random(2, width)
            tensors[f"{moe}{name}.lora_B.weight"] = _random(rows, 2)
    _write(made.adapter, tensors, target_modules=["w1", "w2", "w3", "gate"])
    with quiet():
        reloaded(made).merge_and_unload().save_pretrained(made.merged)
    return made


def _fuse(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Mixtral's tensors as transformers 5 has them in memory."""
    found = {k: v for k, v in stored.items() if "block_sparse_moe" not in k}
    for layer in range(2):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        w1, w2, w3 = (
            torch.stack([stored[f"{old}.experts.{n}.{w}.weight"] for n in range(3)])
            for w in ("w1", "w2", "w3")
        )
        found[f"{new}.experts.gate_up_proj"] = torch.cat([w1, w3], 1)
        found[f"{new}.experts.down_proj"] = w2
        found[f"{new}.gate.weight"] = stored[f"{old}.gate.weight"]
    return found


def test_an_adapter_of_single_experts(tmp_path: Path) -> None:
    made = _mixtral(tmp_path)
    found, adapter = ours(made)
    check_same(found, made.expected())
    assert len(adapter.deltas) == 20
    # The same with a base that keeps the experts of a layer together.
    save_file(_fuse(made.stored()), made.base / "model.safetensors")
    found, adapter = ours(made)
    check_same(found, _fuse(made.expected()))
    assert len(adapter.deltas) == 6


def test_an_adapter_of_all_experts_for_a_base_that_has_them_together(tmp_path: Path) -> None:
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
    config = {
        **PLAIN, "target_modules": ["q_proj"], "target_parameters": targets,
        "rank_pattern": {"mlp.gate.weight": 1, r".*\.gate_up_proj": 3},
        "alpha_pattern": {"mlp.gate.weight": 4},
    }  # fmt: skip
    made = train(tmp_path, "mixtral", config)
    check_same(ours(made)[0], made.expected())
    save_file(_fuse(made.stored()), made.base / "model.safetensors")
    check_same(ours(made)[0], _fuse(made.expected()))


EXPERTS = "base_model.model.model.layers.{}.mlp.experts"


def _stack(tmp_path: Path, layout: Layout, inner: int = 24, **config: Any) -> Trained:
    """A fused Mixtral with an adapter of `down_proj` in `layout`, merged by PEFT's formula."""
    made = Trained(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with quiet():
        model("mixtral", intermediate_size=inner).save_pretrained(made.base)
    stored = _fuse(made.stored())
    save_file(stored, made.base / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts.down_proj"
        count, rows, width = stored[name].shape
        if layout is Layout.SWAPPED:
            rows, width = width, rows
        a, b = _random(count * 2, width), _random(rows, 2 * count)
        each_a = a.reshape(count, 2, width)
        if layout is Layout.BY_EXPERT:
            each_b = b.reshape(rows, count, 2).permute(0, 2, 1)
        else:
            each_b = b.reshape(rows, 2, count)
        order = "e i o" if layout is Layout.SWAPPED else "e o i"
        delta = torch.einsum(f"o r e, e r i -> {order}".replace(" ", ""), each_b, each_a)
        tensors[f"{EXPERTS.format(layer)}.lora_A.weight"] = a
        tensors[f"{EXPERTS.format(layer)}.lora_B.weight"] = b
        stored[name] = stored[name] + 2.5 * delta
    made.merged.mkdir()
    save_file(stored, made.merged / "model.safetensors")
    _write(
        made.adapter, tensors, target_parameters=["experts.down_proj"], target_modules=[], **config
    )
    return made


def test_layouts_of_experts(tmp_path: Path) -> None:
    for layout, told in (
        (Layout.PEFT, None), (Layout.SWAPPED, None), (Layout.BY_EXPERT, Layout.BY_EXPERT)
    ):  # fmt: skip
        made = _stack(tmp_path / layout.value, layout)
        check_same(ours(made, layout=told)[0], made.expected())


def test_layouts_that_shapes_do_not_tell(tmp_path: Path) -> None:
    made = _stack(tmp_path / "new", Layout.PEFT, inner=16, peft_version="0.21.2")
    check_same(ours(made)[0], made.expected())
    made = _stack(tmp_path / "old", Layout.SWAPPED, inner=16, peft_version="0.18.0.dev0")
    check_same(ours(made)[0], made.expected())
    made = _stack(tmp_path / "unknown", Layout.SWAPPED, inner=16)
    with pytest.raises(AdapterError, match=r"16 by 16 do not tell .*moe_layout peft, peft-0\.18"):
        ours(made)
    check_same(ours(made, layout=Layout.SWAPPED)[0], made.expected())


def test_a_fused_adapter_for_a_base_of_single_matrices_and_the_other_way(tmp_path: Path) -> None:
    with quiet():
        model("phi3").save_pretrained(tmp_path / "fused")
        model("llama").save_pretrained(tmp_path / "single")
    at = "base_model.model.model.layers.1."
    qkv_a, up_a, b, up_b = _random(2, 16), _random(2, 16), _random(32, 2), _random(48, 2)
    fused = {
        f"{at}self_attn.qkv_proj.lora_A.weight": qkv_a,
        f"{at}self_attn.qkv_proj.lora_B.weight": b,
        f"{at}mlp.gate_up_proj.lora_A.weight": up_a,
        f"{at}mlp.gate_up_proj.lora_B.weight": up_b,
    }
    single = {}
    for name, a, rows in (
        ("self_attn.q_proj", qkv_a, b[:16]), ("self_attn.k_proj", qkv_a, b[16:24]),
        ("self_attn.v_proj", qkv_a, b[24:]), ("mlp.gate_proj", up_a, up_b[:24]),
        ("mlp.up_proj", up_a, up_b[24:]),
    ):  # fmt: skip
        single[f"{at}{name}.lora_A.weight"] = a
        single[f"{at}{name}.lora_B.weight"] = rows
    _write(tmp_path / "of-fused", fused)
    _write(tmp_path / "of-single", single)
    for base in ("fused", "single"):
        stored = load_file(tmp_path / base / "model.safetensors")
        results = []
        for adapter in ("of-fused", "of-single"):
            with open_adapter(tmp_path / adapter, base_of(tmp_path / base)) as opened:
                results.append(apply(stored, opened))
        check_same(results[0], results[1])
        if base == "fused":
            name = "model.layers.1.self_attn.qkv_proj.weight"
            wanted = stored[name] + 2.5 * b @ qkv_a
        else:
            name = "model.layers.1.self_attn.k_proj.weight"
            wanted = stored[name] + 2.5 * b[16:24] @ qkv_a
        check_same(results[0], {name: wanted})
