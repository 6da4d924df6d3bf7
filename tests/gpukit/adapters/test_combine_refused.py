"""Adapters that cannot become one: one line each."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.combining import WEIGHTS, Family, make, pruning

from gpukit.adapters.combine import combine
from gpukit.adapters.delta import merged
from gpukit.adapters.mixing import METHODS
from gpukit.errors import AdapterError, ArgumentError


@pytest.mark.parametrize(
    ("method", "settings", "what"),
    [
        ("tie", {}, r"no method tie to combine adapters: did you mean 'ties'\?; there are linear"),
        ("ties", {}, "ties prunes: give the density"),
        ("linear", {"density": 0.5}, r"linear prunes nothing; leave the density 0\.5 out"),
        ("ties", {"density": 0}, "a density of 0; it must be over 0 and at most 1"),
        ("ties", {"density": 1.5}, r"a density of 1\.5; it must be over 0"),
        ("ties", {"density": math.nan}, "a density of nan"),
        ("cat", {"rank": 4}, "cat makes no SVD; leave the rank 4 out"),
        ("linear", {"clamp": 0.5}, r"linear makes no SVD; leave the clamp 0\.5 out"),
        ("svd", {"rank": 0}, "a rank of 0; it must be 1 or more"),
        ("svd", {"clamp": 2.0}, r"a clamp at the quantile 2\.0; it must be within 0 and 1"),
        ("ties", {"density": 0.5, "seed": 1}, "ties leaves nothing to chance; leave the seed 1"),
        ("ties", {"density": 0.5, "majority_sign": "all"}, "no majority all; there are total, f"),
    ],
)
def test_requests_that_make_no_sense(
    method: str, settings: dict[str, Any], what: str, same: Family
) -> None:
    with pytest.raises(ArgumentError, match=what) as caught:
        same.combined([1.0, 1.0, 1.0], method, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "what"),
    [([1.0], "3 adapters with 1 weights"), ([1.0, math.inf, 1.0], "adapter-1: a weight of inf")],
)
def test_weights_that_make_no_sense(weights: list[float], what: str, same: Family) -> None:
    with pytest.raises(ArgumentError, match=what):
        same.combined(weights, "linear")
    with pytest.raises(ArgumentError, match="0 adapters with 0 weights"):
        combine([], [], "linear")


@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if not row.whole])
def test_ranks_that_differ(method: str, others: Family) -> None:
    if method == "cat":
        return
    svd = f" or {method}_svd" if method != "linear" else ""
    what = (
        rf"adapter-0 has rank \d at \S+, adapter-1 5; {method} needs one rank: use cat or svd{svd}$"
    )
    with pytest.raises(AdapterError, match=what):
        others.combined(WEIGHTS[3], method, **pruning(method))


@pytest.mark.parametrize(
    ("family", "config", "what"),
    [
        ("llama", {"use_dora": True}, r"adapter-1 is DoRA at \S+weight; lengths cannot"),
        ("llama", {"modules_to_save": ["lm_head"]}, r"adapter-1 replaces lm_head\.weight or adds"),
        ("llama", {"trainable_token_indices": [1]}, r"adapter-1 replaces \S+embed_tokens\.weight"),
        ("llama-biases", {"lora_bias": True}, r"adapter-1 replaces \S+bias or adds to it"),
        (
            "llama-tied",
            {"target_modules": ["q_proj", "lm_head"]},
            "adapter-0 and adapter-1 disagree about whether head and embedding are one",
        ),
    ],
)
def test_what_is_more_than_two_matrices(
    family: str, config: dict[str, Any], what: str, tmp_path: Path
) -> None:
    plain = {"r": 2, "target_modules": ["q_proj"]}
    made = make(tmp_path, family, [plain, {**plain, **config}])
    for method in ("linear", "cat", "svd"):
        with pytest.raises(AdapterError, match=what) as caught:
            made.combined([1.0, 1.0], method)
        assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    made = make(tmp_path, "llama", [{"r": 2, "target_modules": ["q_proj"]}] * 2)
    file = made.adapters[1] / "adapter_model.safetensors"
    saved = load_file(file)
    next(iter(saved.values()))[0, 1] = math.nan
    save_file(saved, file)
    with pytest.raises(AdapterError, match=r"holds nan at \[0, 1\]: its training diverged"):
        made.combined([1.0, 1.0], "ties", density=0.5)


def test_the_config_of_the_first_is_not_asked(tmp_path: Path) -> None:
    """Nothing but B, A and scales counts: a pattern that PEFT would drop has done its work."""
    configs = [
        {"r": 2, "lora_alpha": 3, "alpha_pattern": {"q_proj": 7}, "target_modules": ["q_proj"]},
        {"r": 2, "target_modules": ["q_proj"]},
    ]
    made = make(tmp_path, "llama", configs)
    said = json.loads((made.adapters[0] / "adapter_config.json").read_text())
    assert said["alpha_pattern"] == {"q_proj": 7}
    check = made.merged([1.0, 0.0], "cat")
    with made.opened() as (first, _):
        records = first.deltas["model.layers.0.self_attn.q_proj.weight"]
        name = "model.layers.0.self_attn.q_proj.weight"
        wanted = merged(made.stored()[name], records, torch.float64)
    assert (check[name] - wanted).abs().max() <= 1e-12 * wanted.abs().max()
