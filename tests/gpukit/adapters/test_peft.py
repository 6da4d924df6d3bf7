"""Every form that PEFT writes, loaded and merged, is what PEFT itself makes of it."""

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
from support.adapters import ATTENTION, FUSED, LINEAR, Trained, check_same, ours, train

from gpukit.adapters import peft_config, peft_fields

PLAIN: dict[str, Any] = {"r": 3, "lora_alpha": 5}
EXPERTS = {
    **PLAIN, "target_modules": ATTENTION,
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}  # fmt: skip
EVERYTHING = {
    "llama": [*LINEAR, "embed_tokens", "lm_head"],
    "mistral": [*LINEAR, "embed_tokens", "lm_head"],
    "gemma": LINEAR,
    "gemma2": LINEAR,
    "gemma3": LINEAR,
    "phi3": [*FUSED, "lm_head"],
    "qwen2": [*LINEAR, "embed_tokens", "lm_head"],
    "qwen3": [*LINEAR, "embed_tokens", "lm_head"],
}


def _check(made: Trained, changed: int, **options: Any) -> None:
    """Ours is PEFT's, and it changes as many tensors as it should."""
    found, adapter = ours(made, **options)
    stored = made.stored()
    check_same(found, made.expected())
    assert not adapter.added
    assert len(adapter.deltas) == changed
    assert all(not found[name].equal(stored[name]) for name in adapter.deltas)


@pytest.mark.parametrize("family", EVERYTHING)
def test_all_linear_layers_of_every_family(family: str, tmp_path: Path) -> None:
    targets = EVERYTHING[family]
    outside = sum(name in ("embed_tokens", "lm_head") for name in targets)
    made = train(tmp_path, family, {**PLAIN, "target_modules": targets})
    _check(made, 2 * (len(targets) - outside) + outside)


FORMS: dict[str, dict[str, Any]] = {
    "rank-stabilized": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.*": 5, "up_proj": 1},
        "alpha_pattern": {r"model\.layers\.0\..*_proj": 7, "down_proj": 2},
    },
    "rank-stabilized-patterns": {
        "use_rslora": True, "rank_pattern": {"[qk]_proj": 4}, "alpha_pattern": {"v_proj": 9},
    },
    "excluded": {"exclude_modules": ["k_proj"], "layers_to_transform": [1]},
    "fan-in": {"fan_in_fan_out": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "eva": {"init_lora_weights": "eva"},
    "norms-saved": {"modules_to_save": ["norm", "input_layernorm"]},
    "head-saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "tokens": {"trainable_token_indices": [7, 3]},
    "tokens-of-both": {"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2, 0]}},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_lora(form: str, tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "target_modules": LINEAR, **FORMS[form]})
    more = {"excluded": -8, "norms-saved": 5, "head-saved": 2, "tokens": 1, "tokens-of-both": 2}
    _check(made, 14 + more.get(form, 0))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_take_the_place(bias: str, tmp_path: Path) -> None:
    made = train(tmp_path, "llama-biases", {**PLAIN, "target_modules": ["q_proj"], "bias": bias})
    _check(made, 2 + (14 if bias == "all" else 2))


def test_a_bias_of_b_is_added_to_that_of_the_base(tmp_path: Path) -> None:
    config = {**PLAIN, "target_modules": LINEAR, "lora_bias": True}
    _check(train(tmp_path, "llama-biases", config), 28)


@pytest.mark.parametrize("targets", [["embed_tokens", "lm_head"], ["embed_tokens", "q_proj"]])
def test_dora_of_embeddings_counts_columns(targets: list[str], tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "target_modules": targets, "use_dora": True})
    _check(made, 1 + (2 if "q_proj" in targets else 1))


def test_conv1d_is_stored_the_other_way_round(tmp_path: Path) -> None:
    import transformers
    from support import adapters

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 40}
    adapters.FAMILIES["gpt2"] = (transformers.GPT2Config, sizes)
    targets = ["c_attn", "c_proj", "c_fc"]
    config = {**PLAIN, "target_modules": targets, "fan_in_fan_out": True, "use_dora": True}
    _check(train(tmp_path, "gpt2", config), 8)


@pytest.mark.parametrize("experts", [3, 1])
def test_experts_as_parameters(experts: int, tmp_path: Path) -> None:
    made = train(tmp_path, "mixtral", EXPERTS, num_local_experts=experts, num_experts_per_tok=1)
    _check(made, 2 * (4 + 3 * experts))


def test_a_form_that_is_read_wrongly_would_show(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**PLAIN, "target_modules": LINEAR, "use_rslora": True})
    path = made.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"use_rslora": true', '"use_rslora": false'))
    with pytest.raises(AssertionError, match="proj"):
        check_same(ours(made)[0], made.expected())


def test_settings_that_need_no_peft_are_pefts() -> None:
    made = {f.name: f for f in dataclasses.fields(peft.LoraConfig) if f.name != "runtime_config"}
    known = {**peft_fields.OWN, **peft_fields.USUAL}
    assert known.keys() == made.keys()
    plain = peft.LoraConfig()
    for name, value in known.items():
        if name not in ("peft_type", "peft_version"):  # which PEFT sets by itself
            assert getattr(plain, name) == value, name


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"r": 4, "lora_alpha": 2.5, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v": 1}},
        {"use_rslora": True, "use_dora": True, "target_modules": ["b", "a"]},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"], "bias": "all"},
        {"trainable_token_indices": [1, 2], "ensure_weight_tying": True},
        {"init_lora_weights": "gaussian", "task_type": "CAUSAL_LM", "peft_version": "0.19.0"},
        {"target_parameters": ["mlp.experts.down_proj"], "base_model_name_or_path": "x"},
    ],
)
def test_without_peft_settings_are_the_same(config: dict[str, Any]) -> None:
    config = {"peft_type": "LORA", **config}
    judged = {**config, "megatron_core": "of no matter"}
    assert peft_fields.ordinary(config) is not None
    assert peft_fields.ordinary(judged) is None
    path = Path("adapter_config.json")
    assert peft_config.settings(path, config) == peft_config.settings(path, judged)


def test_what_only_peft_can_judge_is_left_to_it() -> None:
    for strange in (
        {"lora_bias": True}, {"layers_to_transform": [1]}, {"r2": 4}, {"task_type": "NOTHING"},
        {"init_lora_weights": "eva"}, {"init_lora_weights": 1}, {"target_modules": 3},
        {"use_qalora": 0}, {"loftq_config": {"a": 1}}, {"alora_invocation_tokens": [3]},
    ):  # fmt: skip
        assert peft_fields.ordinary({"peft_type": "LORA", **strange}) is None
