"""Models that nothing can be extracted from, and places that nothing can be written to."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.adapters import (
    LINEAR,
    Trained,
    change,
    model,
    quiet,
    train,
)
from torch import Tensor

import gpukit

LORA = {"r": 2, "lora_alpha": 3, "target_modules": LINEAR}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("made"), "llama", LORA)


def _copied(made: Trained, to: Path) -> Trained:
    shutil.copytree(made.base.parent, to)
    return Trained(to / "base", to / "adapter", to / "merged")


@pytest.mark.parametrize(
    ("rank", "settings", "told"),
    [
        (0, {}, "a rank of 0; a whole number above 0"),
        (17, {}, "a rank of 17; no weight of .*base has more than 16"),
        (2, {"type": "Q8_0"}, "unknown type 'Q8_0' of an adapter of PEFT"),
        (2, {"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_asked_for(
    rank: int, settings: dict[str, Any], told: str, made: Trained, tmp_path: Path
) -> None:
    with pytest.raises(gpukit.ArgumentError, match=told):
        gpukit.extract_adapter(made.merged, made.base, tmp_path / "x", rank, **settings)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none(made: Trained, tmp_path: Path) -> None:
    mine = _copied(made, tmp_path / "mine")

    def spoilt(values: Tensor) -> Tensor:
        values[3, 1] = float("nan")
        return values

    change(mine, "layers.1.mlp.up_proj.weight", spoilt)
    with pytest.raises(gpukit.AdapterError, match=r"up_proj\.weight holds nan at \[3, 1\]"):
        gpukit.extract_adapter(mine.merged, mine.base, tmp_path / "x", 2)
    weights = mine.merged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(gpukit.SafetensorsError, match=r"model\.safetensors: "):
        gpukit.extract_adapter(mine.merged, mine.base, tmp_path / "x", 2)
    assert not (tmp_path / "x").exists()


def test_numbers_too_large_for_a_type_leave_nothing(made: Trained, tmp_path: Path) -> None:
    mine = _copied(made, tmp_path / "mine")
    change(mine, "layers.1.mlp.up_proj.weight", lambda values: values * 1e20)
    with pytest.raises(gpukit.AdapterError, match="numbers beyond F16; choose F32"):
        gpukit.extract_adapter(mine.merged, mine.base, tmp_path / "x", 2, type="F16")
    (tmp_path / "empty").mkdir()
    with pytest.raises(gpukit.AdapterError, match="numbers beyond F16; choose F32"):
        gpukit.extract_adapter(mine.merged, mine.base, tmp_path / "empty", 2, type="F16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]
    assert not list((tmp_path / "empty").iterdir())


def test_models_that_do_not_belong_together(made: Trained, tmp_path: Path) -> None:
    others = {
        "other": ("qwen3", {}, "Qwen3ForCausalLM and LlamaForCausalLM; two models of one"),
        "wide": ("llama", {"intermediate_size": 32}, r"has shape \[.*32.*\] in the first, \[.*24"),
        "deep": ("llama", {"num_hidden_layers": 3}, "is in the first only"),
        "flat": ("llama", {"num_hidden_layers": 1}, "is in the second only"),
        "tokens": ("llama", {"vocab_size": 48}, "or the vocabulary was resized"),
        "tied": ("llama-tied", {}, "the head of one is its embedding, that of the other is not"),
    }
    for name, (family, settings, told) in others.items():
        with quiet():
            model(family, **settings).save_pretrained(tmp_path / name)
        with pytest.raises(gpukit.AdapterError, match=told) as error:
            gpukit.extract_adapter(tmp_path / name, made.base, tmp_path / "x", 2)
        assert "\n" not in str(error.value)
    with pytest.raises(gpukit.AdapterError, match="they are the same; there is nothing"):
        gpukit.extract_adapter(made.base, made.base, tmp_path / "x", 2)
    with pytest.raises(gpukit.CheckpointError, match=r"no config\.json"):
        gpukit.extract_adapter(made.adapter, made.base, tmp_path / "x", 2)
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(gpukit.ArgumentError, match="no model folder; adapters are extracted"):
        gpukit.extract_adapter(gguf, made.base, tmp_path / "x", 2)
    assert not (tmp_path / "x").exists()


def test_places_that_are_no_place(made: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, told in (
        (made.base, "something is there; name a folder to be made"),
        (made.merged, "something is there"),
        (tmp_path / "file", "something is there"),
        (tmp_path / "none" / "x", "there is no folder"),
    ):
        with pytest.raises(gpukit.ArgumentError, match=told):
            gpukit.extract_adapter(made.merged, made.base, out, 2)
    assert (tmp_path / "file").read_text() == "mine"
    if os.geteuid():
        (tmp_path / "locked").mkdir(0o500)
        with pytest.raises(gpukit.DiskError, match="you may not write"):
            gpukit.extract_adapter(made.merged, made.base, tmp_path / "locked" / "x", 2)
    (tmp_path / "empty").mkdir()
    gpukit.extract_adapter(made.merged, made.base, tmp_path / "empty", 2)
    assert len(list((tmp_path / "empty").iterdir())) == 2
