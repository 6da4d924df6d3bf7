"""Adapters combined by every method are what PEFT's add_weighted_adapter makes of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from support import adapters
from support.adapters import FUSED, LINEAR, base_of, check_same, quiet
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.combine import combine
from gpukit.adapters.delta import Delta, LowRank, merged
from gpukit.adapters.mixing import METHODS, quantile
from gpukit.adapters.opening import open_adapter
from gpukit.errors import AdapterError, ArgumentError

ALL = [*LINEAR, "embed_tokens", "lm_head"]
WEIGHTS = {2: [0.7, -0.4], 3: [1.0, -0.6, 0.25]}
SEED = 7


@dataclass(frozen=True)
class Family:
    """A base with several adapters, by their folders."""

    base: Path
    adapters: tuple[Path, ...]

    def stored(self) -> dict[str, Tensor]:
        return load_file(self.base / "model.safetensors")

    @contextmanager
    def opened(self) -> Iterator[list[Adapter]]:
        base = base_of(self.base)
        with ExitStack() as stack:
            yield [stack.enter_context(open_adapter(path, base)) for path in self.adapters]

    def combined(self, *args: Any, **settings: Any) -> Mapping[str, tuple[Delta, ...]]:
        with self.opened() as found:
            return combine(found, *args, **settings)

    def merged(self, *args: Any, **settings: Any) -> dict[str, Tensor]:
        """Every tensor with the combination merged by the reference in float64."""
        found = self.stored()
        settings.setdefault("dtype", torch.float64)
        with self.opened() as adapters:
            for name, records in combine(adapters, *args, **settings).items():
                found[name] = merged(found[name], records, torch.float64)
        return found

    @cache  # noqa: B019
    def peft(self, dtype: torch.dtype = torch.float64) -> Any:
        """The base with all adapters, called 0, 1, ..."""
        with quiet():
            plain = transformers.AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
            rest = self.adapters[1:]
            model = peft.PeftModel.from_pretrained(
                plain, self.adapters[0], adapter_name="0", autocast_adapter_dtype=False
            )
            for number, path in enumerate(rest, 1):
                model.load_adapter(path, str(number), autocast_adapter_dtype=False)
        return model


def low_rank(records: Sequence[Delta]) -> list[LowRank]:
    return [record for record in records if isinstance(record, LowRank)]


def make(
    root: Path, family: str, configs: Sequence[Mapping[str, Any]], dtype: torch.dtype | None = None
) -> Family:
    paths = tuple(root / f"adapter-{number}" for number in range(len(configs)))
    with quiet():
        adapters.model(family).save_pretrained(root / "base")
        for number, (path, config) in enumerate(zip(paths, configs, strict=True)):
            plain = adapters.model(family)
            wrapped = peft.get_peft_model(
                plain, peft.LoraConfig(**config), autocast_adapter_dtype=False
            )
            adapters.fill(wrapped)
            wrapped.save_pretrained(path)
            file = path / "adapter_model.safetensors"
            torch.manual_seed(number)
            saved = load_file(file)
            for name, values in saved.items():
                if "lora_" in name:  # all but copies of the base's own
                    saved[name] = torch.randn_like(values).to(dtype or values.dtype)
            save_file(saved, file)
    return Family(root / "base", paths)


def add(model: Any, weights: Sequence[float], method: str, **settings: Any) -> None:
    """PEFT's combination as adapter `mix`; chance is seeded when that has been set up."""
    set_up = model.base_model.inject_adapter

    def seeded(*args: Any, **named: Any) -> None:
        set_up(*args, **named)
        torch.manual_seed(SEED)

    names = [str(number) for number in range(len(weights))]
    model.base_model.inject_adapter = seeded
    try:
        with quiet():
            model.add_weighted_adapter(names, list(weights), "mix", method, **settings)
    finally:
        model.base_model.inject_adapter = set_up


def peft_merged(family: Family, *args: Any, **settings: Any) -> dict[str, Tensor]:
    """Every tensor of the base with PEFT's combination added."""
    model = family.peft()
    add(model, *args, **settings)
    found = family.stored()
    with quiet():
        for name, module in model.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                found[f"{name}.weight"] += module.get_delta_weight("mix").detach()
        model.delete_adapter("mix")
    return found


def pruning(method: str) -> dict[str, Any]:
    return {"density": 0.4} if METHODS[method].prunes else {}


def chance(method: str) -> dict[str, Any]:
    return {"seed": SEED} if METHODS[method].prunes == "chance" else {}


def check_method(family: Family, method: str, weights: Sequence[float], **settings: Any) -> None:
    given = pruning(method) | settings
    found = family.merged(weights, method, **given, **chance(method))
    stored = family.stored()
    check_same(found, peft_merged(family, weights, method, **given))
    assert sum(not found[name].equal(stored[name]) for name in stored) > 4


SAME = [{"r": 3, "lora_alpha": 5}, {"r": 3, "lora_alpha": 2}, {"r": 3, "use_rslora": True}]
OTHERS = [
    {"r": 3, "lora_alpha": 5, "rank_pattern": {"q_proj": 2}},
    {"r": 5, "lora_alpha": 2, "use_rslora": True},
    {"r": 1, "lora_alpha": 1},
]


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three adapters of one rank."""
    configs = [{**config, "target_modules": ALL} for config in SAME]
    return make(tmp_path_factory.mktemp("same"), "llama", configs)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three adapters of different ranks and modules."""
    targets = (ALL, ["q_proj", "down_proj", "embed_tokens"], ["q_proj", "v_proj"])
    configs = [
        {**config, "target_modules": modules}
        for config, modules in zip(OTHERS, targets, strict=True)
    ]
    return make(tmp_path_factory.mktemp("others"), "llama", configs)


def _first(family: Family, count: int) -> Family:
    return Family(family.base, family.adapters[:count])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_one_rank(method: str, count: int, same: Family) -> None:
    check_method(_first(same, count), method, WEIGHTS[count])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if row.whole or m == "cat"])
def test_every_method_with_ranks_that_differ(method: str, count: int, others: Family) -> None:
    check_method(_first(others, count), method, WEIGHTS[count])


@pytest.mark.parametrize("weights", [[1, 0], [-1.0, -2.0], [0.0, 0.5]])
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_any_sign(method: str, weights: list[float], same: Family) -> None:
    check_method(_first(same, 2), method, weights)


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
    family, given = _first(same, 2), pruning(method)
    found = family.merged(WEIGHTS[2], method, clamp=0.9, **given)
    wanted = peft_merged(family, WEIGHTS[2], method, svd_clamp=0.9, **given)
    check_same(found, wanted)


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
    family = _first(same, 1)
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
