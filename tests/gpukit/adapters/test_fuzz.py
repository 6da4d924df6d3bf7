"""Whatever stands in an adapter, it is fitted or refused in one line."""

from pathlib import Path
from typing import Any

from hypothesis import given, settings as limits, strategies as st
from support.fuzz_adapters import fuzz

from gpukit.adapters.base import canonical
from gpukit.adapters.mlx import mlx_settings
from gpukit.adapters.peft_config import settings
from gpukit.errors import AdapterError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
PEFT_KEYS = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules",
    "target_parameters", "modules_to_save", "trainable_token_indices", "init_lora_weights", "bias",
    "layer_replication", "base_model_name_or_path", "peft_version", "ensure_weight_tying",
    "layers_to_transform", "eva_config", "task_type", "megatron_config", "something_new",
)  # fmt: skip
MLX_KEYS = ("fine_tune_type", "lora_parameters", "model", "num_layers")


def test_mutants_are_merged_or_refused() -> None:
    outcomes = fuzz(600, seed=5)
    for what in ("config merged", "config refused", "tensors refused", "bytes refused"):
        assert outcomes[what] > 10, outcomes


@limits(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(PEFT_KEYS), JSON, max_size=3))
def test_settings_of_peft(changes: dict[str, Any]) -> None:
    try:
        found = settings(Path("x"), {"peft_type": "LORA", "r": 8, "lora_alpha": 8, **changes})
    except AdapterError:
        return
    assert isinstance(found.scale("model.layers.0.self_attn.q_proj"), float)
    assert found.rank("q_proj") > 0


@limits(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(MLX_KEYS), JSON, max_size=4))
def test_settings_of_mlx(found: dict[str, Any]) -> None:
    try:
        read = mlx_settings(Path("x"), found)
    except AdapterError:
        return
    assert read.rank > 0 or read.kind == "full"


@given(st.lists(st.sampled_from(["model", "language_model", "experts", "1", "w1", "", "a"])))
def test_a_name_has_one_form(parts: list[str]) -> None:
    name = canonical(".".join(parts))
    assert canonical(name) == name
    assert canonical("base_model.model." + name) == name
