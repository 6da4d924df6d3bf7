"""The sum that a merge is: its order and rounding, and several adapters one after the other."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from support.adapters import (
    LINEAR,
    Trained,
    apply,
    base_of,
    check_same,
    fill,
    model,
    quiet,
    reloaded,
    train,
)
from torch import Tensor

from gpukit.adapters.delta import LowRank, merged
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.together import combined, weighted
from gpukit.adapters.values import Values, WeightFile
from gpukit.errors import AdapterError

PLAIN: dict[str, Any] = {"r": 2, "lora_alpha": 5, "target_modules": LINEAR}


def _values(tensor: Tensor) -> Values:
    return Values(
        "x",
        Path("x"),
        "F32",
        tuple(tensor.shape),
        lambda first, count: tensor[first : first + count].numpy(),
    )


def test_products_are_rounded_one_by_one_and_added_in_order() -> None:
    torch.manual_seed(0)
    weight, b, a = torch.randn(5, 7), torch.randn(5, 9), torch.randn(9, 7)
    found = merged(weight, [LowRank(_values(b), _values(a), 0.3)])
    for row in range(5):
        for column in range(7):
            total = torch.tensor(0.0)
            for k in range(9):
                total = total + (b[row, k] * a[k, column])
            wanted = weight[row, column] + total * torch.tensor(0.3)
            assert found[row, column].item() == wanted.item()
    # Another order or another rounding is another number somewhere.
    assert not found.equal(weight + 0.3 * (b @ a))


def test_float32_is_within_the_rounding_of_float64(tmp_path: Path) -> None:
    """n + 2 roundings, each of at most 2^-24 of the sum of magnitudes."""
    made = train(tmp_path, "llama", {**PLAIN, "r": 16})
    expected, stored = made.expected(), made.stored()
    with open_adapter(made.adapter, base_of(made.base)) as adapter:
        assert len(adapter.deltas) == 14
        for name, (record,) in adapter.deltas.items():
            assert isinstance(record, LowRank)
            a, b = record.a.read(torch.float64).abs(), record.b.read(torch.float64).abs()
            weight = stored[name].float()
            magnitudes = weight.abs() + record.scale * (b @ a)
            error = (merged(weight, [record]).double() - expected[name]).abs()
            # Weight, A and B are rounded into float32 first: three more.
            assert (error <= (record.rank + 5) * 2**-24 * magnitudes).all()


@pytest.mark.parametrize("dora", [False, True])
def test_several_adapters_in_the_order_given(dora: bool, tmp_path: Path) -> None:
    made = Trained(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with quiet():
        plain = model("llama")
        plain.save_pretrained(made.base)
        first = peft.LoraConfig(**PLAIN, use_dora=dora)
        wrapped = peft.get_peft_model(plain, first, "one", autocast_adapter_dtype=False)
        second = {**PLAIN, "r": 3, "target_modules": ["q_proj", "embed_tokens"], "use_dora": dora}
        wrapped.add_adapter("two", peft.LoraConfig(**second), autocast_adapter_dtype=False)
        for name in ("one", "two"):
            wrapped.set_adapter(name)
            fill(wrapped)
        wrapped.save_pretrained(made.adapter)
        whole = wrapped.merge_and_unload(adapter_names=["one", "two"])
        whole.save_pretrained(made.merged)
    base = base_of(made.base)
    with (
        open_adapter(made.adapter / "one", base) as one,
        open_adapter(made.adapter / "two", base) as two,
    ):
        check_same(apply(made.stored(), one, two), made.expected())
        assert len(combined([one, two])["model.layers.0.self_attn.q_proj.weight"]) == 2


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_weight_where_peft_saved_embedding_or_head_too(family: str, tmp_path: Path) -> None:
    targets = ["q_proj", "embed_tokens"] + ["lm_head"] * (family == "llama")
    made = train(tmp_path, family, {**PLAIN, "target_modules": targets})
    assert any("base_layer" in n for n in load_file(made.adapter / "adapter_model.safetensors"))
    wrapped = reloaded(made)
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", -0.5)
    with open_adapter(made.adapter, base_of(made.base)) as adapter:
        found = apply(made.stored(), weighted(adapter, -0.5))
    with quiet():
        wrapped.merge_and_unload().save_pretrained(made.merged)
    check_same(found, made.expected())


def _pair(tmp_path: Path, **second: Any) -> tuple[Trained, Path]:
    made = train(tmp_path / "one", "llama", {**PLAIN, "modules_to_save": ["lm_head"]})
    other = train(tmp_path / "two", "llama", {**PLAIN, **second})
    return made, shutil.copytree(other.adapter, tmp_path / "other")


CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "both-whole": ({"modules_to_save": ["lm_head"]}, r"adapter and other both change lm_head"),
    "whole-and-delta": ({"target_modules": ["lm_head"]}, r"both change lm_head.*one as a whole"),
}


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_adapters_that_contradict_each_other(conflict: str, tmp_path: Path) -> None:
    settings, message = CONFLICTS[conflict]
    made, other = _pair(tmp_path, **settings)
    base = base_of(made.base)
    with (
        open_adapter(made.adapter, base) as one,
        open_adapter(other, base) as two,
        pytest.raises(AdapterError, match=message),
    ):
        combined([one, two])


def test_two_of_one_name_and_tokens_twice(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "trainable_token_indices": [3, 8]})
    base = base_of(made.base)
    with (
        open_adapter(made.adapter, base) as one,
        open_adapter(made.adapter, base) as two,
        pytest.raises(AdapterError, match="two adapters are called adapter"),
    ):
        combined([one, two])
    with (
        open_adapter(made.adapter, base) as one,
        open_adapter(made.adapter, base, name="again") as two,
        pytest.raises(AdapterError, match="adapter and again both replace row 3 of model"),
    ):
        combined([one, two])


def test_a_copy_of_the_base_beside_a_delta_counts_once(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "target_modules": ["embed_tokens", "lm_head"]})
    base, stored = base_of(made.base), made.stored()
    name = "model.embed_tokens.weight"
    with (
        open_adapter(made.adapter, base) as one,
        open_adapter(made.adapter, base, name="again") as two,
    ):
        both = combined([one, two])[name]
        assert [type(record).__name__ for record in both] == ["Replaced", "LowRank", "LowRank"]
        found = merged(stored[name], both, torch.float64)
    check_same({name: found}, {name: 2 * made.expected()[name] - stored[name]})


def test_numbers_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(6, 4), "b": torch.randn(4, 2, 3).half(), "c": torch.ones(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    with WeightFile(tmp_path / "x.safetensors") as file:
        a, b = file.values["a"], file.values["b"]
        assert (a.shape, a.dtype, b.shape, b.dtype) == ((6, 4), "F32", (4, 2, 3), "F16")
        assert a.rows(2, 3).read_rows(1, 2).equal(tensors["a"][3:5])
        assert a.t.shape == (4, 6)
        assert a.t.read_rows(1, 2).equal(tensors["a"].t()[1:3])
        assert a.rows(1, 4).t.read().equal(tensors["a"][1:5].t())
        assert b.matrix(3).read().equal(tensors["b"][3].float())
        kept = load_file(tmp_path / "x.safetensors")
        assert file.values["c"].read(torch.float64).equal(kept["c"].double())
