"""Adapters combined by every method are what PEFT's add_weighted_adapter makes of them."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from support import adapters
from support.adapters import FUSED, LINEAR, check_same
from support.combining import (
    ALL,
    SAME,
    WEIGHTS,
    Family,
    add,
    chance,
    check_method,
    first_of,
    low_rank,
    make,
    peft_merged,
    pruning,
)
from torch import Tensor

from gpukit.adapters.delta import LowRank, merged
from gpukit.adapters.mixing import METHODS, quantile


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_one_rank(method: str, count: int, same: Family) -> None:
    check_method(first_of(same, count), method, WEIGHTS[count])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if row.whole or m == "cat"])
def test_every_method_with_ranks_that_differ(method: str, count: int, others: Family) -> None:
    check_method(first_of(others, count), method, WEIGHTS[count])


@pytest.mark.parametrize("weights", [[1, 0], [-1.0, -2.0], [0.0, 0.5]])
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_any_sign(method: str, weights: list[float], same: Family) -> None:
    check_method(first_of(same, 2), method, weights)


@pytest.mark.parametrize("method", ["ties", "ties_svd", "dare_ties", "dare_ties_svd"])
def test_most_of_the_values_may_elect(method: str, same: Family) -> None:
    setting = {"majority_sign": "frequency"}
    given = pruning(method)
    found = same.merged(WEIGHTS[3], method, **given, **setting, **chance(method))
    wanted = peft_merged(same, WEIGHTS[3], method, **given, majority_sign_method="frequency")
    check_same(found, wanted)


@pytest.mark.parametrize("density", [0.01, 0.5, 1])
@pytest.mark.parametrize("method", ["magnitude_prune", "dare_linear", "ties"])
def test_densities(method: str, density: float, same: Family) -> None:
    found = same.merged(WEIGHTS[3], method, density=density, **chance(method))
    wanted = peft_merged(same, WEIGHTS[3], method, density=density)
    check_same(found, wanted)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_ranks_of_an_svd(rank: int, others: Family) -> None:
    found = others.merged(WEIGHTS[3], "svd", rank=rank)
    wanted = peft_merged(others, WEIGHTS[3], "svd", svd_rank=rank)
    check_same(found, wanted)


def test_an_svd_of_all_ranks_and_more_is_the_sum(others: Family) -> None:
    """PEFT makes matrices here that do not fit each other."""
    weights = [0.75, -0.5, 0.25]
    for method in ("svd", "magnitude_prune_svd"):
        given = {"density": 1.0} if METHODS[method].prunes else {}
        found = others.merged(weights, method, rank=40, **given)
        check_same(found, others.merged(weights, "cat"))


@pytest.mark.parametrize("method", ["svd", "ties_svd"])
def test_an_svd_that_is_cut(method: str, same: Family) -> None:
    family, given = first_of(same, 2), pruning(method)
    found = family.merged(WEIGHTS[2], method, clamp=0.9, **given)
    wanted = peft_merged(family, WEIGHTS[2], method, svd_clamp=0.9, **given)
    check_same(found, wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if not row.whole])
def test_in_float32_every_bit_is_that_of_peft(
    method: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Values of 16 bits, of which many are equally large, and what pruning leaves of those."""
    configs = [{**config, "target_modules": ALL} for config in SAME[:2]]
    family = make(tmp_path, "llama", configs, dtype)
    model = family.peft(torch.float32).float()
    add(model, WEIGHTS[2], method, **pruning(method))
    found = family.combined(WEIGHTS[2], method, **pruning(method), **chance(method))
    names = {"model.embed_tokens", "lm_head", *(f"model.layers.1.{n}" for n in _modules())}
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        (record,) = low_rank(found[f"{name}.weight"])
        b, a = record.b.read(), record.a.read()
        if "embed" in name:
            b, a = a.t(), b.t()
            peft_a, peft_b = layer.lora_embedding_A["mix"], layer.lora_embedding_B["mix"]
        else:
            peft_a, peft_b = layer.lora_A["mix"].weight, layer.lora_B["mix"].weight
        rank = a.shape[0]
        assert a.equal(peft_a[:rank]), name
        assert b.equal(peft_b[:, :rank]), name
        assert record.scale == layer.scaling["mix"] == 1.0


def _modules() -> list[str]:
    return [f"self_attn.{n}" if n in LINEAR[:4] else f"mlp.{n}" for n in LINEAR]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["phi3", "qwen2", "gemma2", "llama-tied", "gpt2"])
@pytest.mark.parametrize("method", ["dare_ties", "linear", "svd", "ties_svd"])
def test_other_families(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 40}
    gpt2 = (transformers.GPT2Config, sizes)
    monkeypatch.setattr(adapters, "FAMILIES", {**adapters.FAMILIES, "gpt2": gpt2})
    targets: list[str] = {"phi3": FUSED, "gpt2": ["c_attn", "c_proj"]}.get(family, LINEAR)
    more = {"fan_in_fan_out": True} if family == "gpt2" else {}
    if family == "gpt2" and METHODS[method].prunes == "chance":
        return  # the order of its modules is not known
    configs = [{**config, **more, "target_modules": targets} for config in SAME[:2]]
    check_method(make(tmp_path, family, configs), method, WEIGHTS[2])


def test_one_adapter_is_linear(same: Family) -> None:
    family = first_of(same, 1)
    wanted = family.merged([0.5], "linear")
    for method in METHODS:
        check_same(family.merged([0.5], method, **pruning(method)), wanted)
    with family.opened() as (adapter,):
        for name, records in adapter.deltas.items():
            *copies, record = records
            assert isinstance(record, LowRank)
            plain = merged(
                family.stored()[name],
                [*copies, LowRank(record.b, record.a, 0.5 * record.scale, record.first)],
                torch.float64,
            )
            assert (wanted[name] - plain).abs().max() <= 1e-6 * plain.abs().max()


def test_a_rank_stabilised_first_adapter_is_not_scaled_again(same: Family) -> None:
    family = Family(same.base, (same.adapters[2], same.adapters[0]))
    model = family.peft()
    add(model, [1.0, 1.0], "cat")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["mix"] == pytest.approx(math.sqrt(6))
    (record,) = family.combined([1.0, 1.0], "cat")["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(record, LowRank)
    assert record.scale == 1.0


def test_chance_is_as_the_seed_says(same: Family) -> None:
    def numbers(seed: int | None) -> Tensor:
        found = same.combined([1.0, 1.0, 1.0], "dare_linear", density=0.5, seed=seed)
        return torch.cat([r.b.read().flatten() for d in found.values() for r in low_rank(d)])

    assert numbers(1).equal(numbers(1))
    assert not numbers(1).equal(numbers(2))
    assert not numbers(None).equal(numbers(None))


def test_records_can_be_read_in_part(same: Family) -> None:
    for records in same.combined([1.0, 2.0, 3.0], "cat").values():
        for record in low_rank(records):
            assert record.rank == 9
            assert record.b.read_rows(1, 2).equal(record.b.read()[1:3])
            assert record.a.shape == tuple(record.a.read().shape)


def test_a_quantile_of_any_number_of_values() -> None:
    values = torch.randn(1001, dtype=torch.float64)
    for part in (0.0, 0.25, 0.9, 0.99999, 1.0):
        assert float(quantile(values, part)) == pytest.approx(float(values.quantile(part)))
    assert quantile(torch.zeros(1), 0.7) == 0
