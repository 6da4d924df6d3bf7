"""What cannot be a GGUF adapter, or is broken, is one line, and nothing is left."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.adapters import (
    LINEAR,
    Trained,
    train,
)
from torch import Tensor

import gpukit

LORA = {"r": 2, "lora_alpha": 3, "target_modules": LINEAR}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "dora": (
        "llama", {"use_dora": True}, r"_proj\.weight has DoRA's lengths .* \(gpukit merge\)$"
    ),
    "saved": (
        "llama", {"modules_to_save": ["norm"]},
        r"norm\.weight is replaced as a whole .* \(gpukit merge\)$",
    ),
    "bias": (
        "llama-biases", {"lora_bias": True}, r"_proj\.bias is a bias that .* \(gpukit merge\)$"
    ),
    "tokens": (
        "llama", {"trainable_token_indices": [3, 1]},
        r"model\.embed_tokens\.weight has 2 tokens that .* \(gpukit merge\)$",
    ),
    "embedding-of-both": (
        "llama-tied", {"target_modules": ["embed_tokens"]},
        r"trained model\.embed_tokens\.weight, and the base's head is its embedding",
    ),
    "head-of-both": (
        "llama-tied", {"target_modules": ["lm_head"]}, r"trained lm_head\.weight, and the base's"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_gguf_adapter_is_refused(case: str, tmp_path: Path) -> None:
    family, config, told = REFUSED[case]
    made = train(tmp_path, family, {**LORA, **config})
    with pytest.raises(gpukit.AdapterError, match=told) as error:
        gpukit.write_adapter(made.adapter, made.base, tmp_path / "x.gguf")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.gguf").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("made"), "llama", LORA)


def _broken(made: Trained, to: Path, **changes: Any) -> Path:
    """A copy of the adapter with other tensors or settings."""
    to.mkdir()
    values = load_file(made.adapter / "adapter_model.safetensors")
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    for key, value in changes.items():
        if key in config:
            config[key] = value
        else:
            name = next(name for name in values if key in name)
            values[name] = value(values[name])
    save_file(values, to / "adapter_model.safetensors")
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


def _with(value: float) -> Any:
    def change(values: Tensor) -> Tensor:
        values[0, 1] = value
        return values

    return change


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"r": 0}, "F32", "rank r is 0"),
        ({"lora_B": _with(float("nan"))}, "F32", r"holds nan at \[0, 1\]"),
        ({"lora_B": _with(1e30)}, "F16", r"lora_b: 1e\+30 is more than F16 holds; choose F32"),
        ({"lora_B": _with(1e300)}, "F32", "numbers beyond float32"),
        ({"lora_A": lambda a: a[:, :-1].clone()}, "F32", "made for another base"),
        ({"base_model_name_or_path": "org/other"}, "F32", "made for org/other, the base is base"),
        ({}, "Q4_0", "unknown type 'Q4_0' of an adapter; known: F32, F16, BF16, Q8_0"),
    ],
)
def test_what_is_broken_leaves_nothing(
    changes: dict[str, Any], kind: str, told: str, made: Trained, tmp_path: Path
) -> None:
    adapter = _broken(made, tmp_path / "adapter", **changes)
    with pytest.raises(gpukit.GpukitError, match=told):
        gpukit.write_adapter(adapter, made.base, tmp_path / "x.gguf", type=kind, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_files_that_lack_something(made: Trained, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    cut = _broken(made, tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    bare = _broken(made, tmp_path / "bare")
    (bare / "adapter_config.json").unlink()
    other = train(tmp_path / "other", "qwen3", {"r": 2, "target_modules": ["q_proj"]})
    locked = tmp_path / "locked"
    locked.mkdir(0o500)
    for adapter, base, to, told in (
        (cut, made.base, out, "adapter_model.safetensors: "),
        (bare, made.base, out, "no adapter_config.json"),
        (other.adapter, made.base, out, "made for another base"),
        (made.adapter, tmp_path / "nowhere", out, "no such file or folder"),
        (tmp_path / "nowhere", made.base, out, "no such file or folder"),
        (made.adapter, made.adapter, out, "no config.json"),
        (made.adapter, made.base, tmp_path, "a folder; name the file"),
        (made.adapter, made.base, tmp_path / "none" / "x.gguf", "there is no folder"),
        (made.adapter, made.base / "model.safetensors", out, "weights without their model"),
    ):
        with pytest.raises(gpukit.GpukitError, match=told):
            gpukit.write_adapter(adapter, base, to)
    if os.geteuid():
        with pytest.raises(gpukit.DiskError, match="you may not write"):
            gpukit.write_adapter(made.adapter, made.base, locked / "x.gguf")
    assert not out.exists()
