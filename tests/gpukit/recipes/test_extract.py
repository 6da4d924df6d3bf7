"""What is extracted is the best of its rank, and PEFT loads it."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.adapters import (
    FUSED,
    LINEAR,
    Trained,
    apply,
    base_of,
    change,
    check_near,
    quiet,
    train,
)
from torch import Tensor

import gpukit
from gpukit.adapters import low_rank
from gpukit.adapters.opening import open_adapter

LORA = {"r": 2, "lora_alpha": 3, "target_modules": LINEAR}
EXTRACTED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("llama", {"target_modules": LINEAR}, False),
    "some-layers": ("llama", {"target_modules": LINEAR, "layers_to_transform": [1]}, False),
    "embeddings": ("llama", {"target_modules": [*LINEAR, "lm_head", "embed_tokens"]}, True),
    "qwen3": ("qwen3", {"target_modules": LINEAR}, False),
    "phi3": ("phi3", {"target_modules": FUSED}, False),
    "gemma2": ("gemma2", {"target_modules": LINEAR}, False),
}


def _by_us(made: Trained, folder: Path) -> dict[str, Tensor]:
    with open_adapter(folder, base_of(made.base)) as adapter:
        assert adapter.warnings == ()
        return apply(made.stored(), adapter)


def _by_peft(made: Trained, folder: Path) -> dict[str, Tensor]:
    """What PEFT's merge saves."""
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float64)
        wrapped = peft.PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False)
        wrapped.merge_and_unload().save_pretrained(folder.parent / "by-peft")
    return load_file(folder.parent / "by-peft" / "model.safetensors")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("way", ["exact", "randomised"])
@pytest.mark.parametrize("case", EXTRACTED)
def test_a_known_delta_comes_back(
    case: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "randomised":
        monkeypatch.setattr(low_rank, "EXACT", 0)
        monkeypatch.setattr(low_rank, "SLAB", 100)
        monkeypatch.setattr(low_rank, "KEPT", 0)
    family, config, embeddings = EXTRACTED[case]
    made = train(tmp_path, family, {"r": 2, "lora_alpha": 3, **config})
    out = tmp_path / "lora"
    result = gpukit.extract_adapter(made.merged, made.base, out, 2, embeddings=embeddings)
    assert result.kept > 1 - 1e-6
    assert (result.randomised == 0) == (way == "exact")
    assert result.warnings == ()
    # The difference is in float32, and so are B and A: a few roundings of 2**-24.
    for found in (_by_us(made, out), _by_peft(made, out)):
        check_near(found, made.expected(), 3e-6)
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["lora_alpha"] == settings["r"] == result.rank == 2
    assert settings["base_model_name_or_path"] == str(made.base)
    if case == "some-layers":
        assert all(name.startswith("model.layers.1.") for name in settings["target_modules"])
    else:
        assert settings["target_modules"] == sorted(config["target_modules"])


def test_experts_have_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    made = train(
        tmp_path, "mixtral",
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"],
         "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    )  # fmt: skip
    out = tmp_path / "lora"
    gpukit.extract_adapter(made.merged, made.base, out, 2)
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "w1", "w2", "w3"]
    check_near(_by_us(made, out), made.expected(), 3e-6)
    # PEFT makes the stacks of transformers 5 of them.
    check_near(_by_peft(made, out), made.expected(), 3e-6)


@pytest.mark.parametrize("only", [None, "down_proj"])
def test_stacks_of_experts(only: str | None, tmp_path: Path) -> None:
    kinds = [only] if only else ["gate_up_proj", "down_proj"]
    made = train(
        tmp_path, "mixtral",
        {"r": 2, "lora_alpha": 3, "target_parameters": [f"mlp.experts.{kind}" for kind in kinds],
         **({} if only else {"target_modules": ["q_proj"]})},
    )  # fmt: skip
    for folder in (made.base, made.merged):
        with quiet():
            load = transformers.AutoModelForCausalLM.from_pretrained
            plain = load(folder, dtype=torch.float64)
            shutil.rmtree(folder)
            plain.save_pretrained(folder, save_original_format=False)
    assert any(len(values.shape) == 3 for values in made.stored().values())
    result = gpukit.extract_adapter(made.merged, made.base, tmp_path / "lora", 2)
    assert result.warnings == ()
    assert result.kept > 1 - 1e-6
    check_near(_by_us(made, tmp_path / "lora"), made.expected(), 3e-6)
    with quiet():
        plain = load(made.base, dtype=torch.float64)
        wrapped = peft.PeftModel.from_pretrained(
            plain, tmp_path / "lora", autocast_adapter_dtype=False
        )
        found = wrapped.merge_and_unload().state_dict()
    wanted = made.expected()
    check_near({name: found[name] for name in wanted}, wanted, 3e-6)


def test_a_tied_embedding_stays_tied(tmp_path: Path) -> None:
    made = train(tmp_path, "llama-tied", LORA)
    change(made, "embed_tokens.weight", _of_rank(3))
    result = gpukit.extract_adapter(made.merged, made.base, tmp_path / "lora", 3, embeddings=True)
    assert result.kept > 1 - 1e-6
    with open_adapter(tmp_path / "lora", base_of(made.base)) as adapter:
        assert not adapter.added
        found = apply(made.stored(), adapter)
    found = {name: values for name, values in found.items() if name != "lm_head.weight"}
    check_near(found, made.expected(), 3e-6)
    # PEFT's merge adds the delta of what is one to it twice; what it computes before is right.
    tokens = torch.arange(1, 20)[None]
    with quiet(), torch.no_grad():
        load = transformers.AutoModelForCausalLM.from_pretrained
        plain = load(made.base, dtype=torch.float64)
        with warnings.catch_warnings():
            # Of keys that are missing or left over PEFT only warns.
            warnings.filterwarnings("error", message=".*keys.*")
            wrapped = peft.PeftModel.from_pretrained(
                plain, tmp_path / "lora", autocast_adapter_dtype=False
            )
        wanted = load(made.merged, dtype=torch.float64)(tokens).logits
        error = (wrapped(tokens).logits - wanted).abs().max()
    assert error < 1e-4 * wanted.abs().max()


def _of_rank(rank: int) -> Any:
    def change(values: Tensor) -> Tensor:
        torch.manual_seed(7)
        rows, width = values.shape
        return values + torch.randn(rows, rank).double() @ torch.randn(rank, width).double()

    return change


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (90, 90)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_full_difference_keeps_what_the_singular_values_say(
    shape: tuple[int, int], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "EXACT", 1000 if exact else 0)
    monkeypatch.setattr(low_rank, "SLAB", 1000)
    torch.manual_seed(0)
    base, tuned = torch.randn(2, *shape)
    d = low_rank.Difference(_values(tuned), _values(base), torch.device("cpu"))
    found = low_rank.factorise(d, 8)
    values = torch.linalg.svdvals((tuned - base).double())
    best = values[:8].square().sum().item()
    assert found.energy == pytest.approx(values.square().sum().item(), rel=1e-6)
    assert found.weight == pytest.approx(base.square().sum().item(), rel=1e-6)
    # A spectrum without any decay is the worst case of a random subspace.
    assert found.kept == pytest.approx(best, rel=1e-6 if exact else 2e-3)
    rest = (tuned - base - found.b @ found.a).square().sum().item()
    assert found.energy - rest == pytest.approx(found.kept, rel=1e-5)
    assert found.exact == exact


def _values(numbers: Tensor) -> Any:
    from gpukit.adapters.values import Values

    values = numbers.numpy()
    return Values("x", Path("x"), "F32", values.shape, lambda f, n: values[f : f + n])


def test_what_has_no_form_is_told(tmp_path: Path) -> None:
    made = train(tmp_path, "llama-biases", LORA)
    for end in ("model.norm.weight", "layers.1.mlp.up_proj.bias", "embed_tokens.weight"):
        change(made, end, lambda values: values * 1.5)
    result = gpukit.extract_adapter(made.merged, made.base, tmp_path / "lora", 4)
    assert {line.partition(":")[0] for line in result.warnings} == {
        "norm.weight", "up_proj.bias", "embed_tokens.weight",
    }  # fmt: skip
    assert all("||dW|| / ||W|| is 0.5 at most (model." in line for line in result.warnings)
    assert result.as_json()["classes"]["q_proj"]["tensors"] == 2
    found, wanted = _by_us(made, tmp_path / "lora"), made.expected()
    names = [n for n in wanted if "proj.weight" in n]
    check_near({n: found[n] for n in names}, {n: wanted[n] for n in names}, 3e-6)


def test_norms_are_saved_whole_if_they_are_asked_for(tmp_path: Path) -> None:
    made = train(tmp_path, "gemma2", LORA)
    names = ("model.norm.weight", "layers.1.input_layernorm.weight")
    for end in names:
        change(made, end, lambda values: values * 1.5)
    out = tmp_path / "lora"
    result = gpukit.extract_adapter(made.merged, made.base, out, 2, norms=True)
    assert result.warnings == ()
    saved = json.loads((out / "adapter_config.json").read_text())["modules_to_save"]
    assert sorted(saved) == ["model.layers.1.input_layernorm", "model.norm"]
    for found in (_by_us(made, out), _by_peft(made, out)):
        check_near(found, made.expected(), 3e-6)


def test_types_and_gguf(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", LORA)
    for kind in ("F16", "bf16"):
        gpukit.extract_adapter(made.merged, made.base, tmp_path / kind, 2, type=kind)
        values = load_file(tmp_path / kind / "adapter_model.safetensors")
        assert {str(v.dtype) for v in values.values()} == {
            "torch.float16" if kind == "F16" else "torch.bfloat16"
        }
        check_near(_by_us(made, tmp_path / kind), made.expected(), 5e-2)
    result = gpukit.write_adapter(tmp_path / "F16", made.base, tmp_path / "x.gguf")
    assert (result.alpha, result.ranks, result.folded) == (2.0, (2,), 0)
