"""What is no adapter, or none of this base, is one clear line before anything is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from support.adapters import LINEAR, Trained, apply, base_of, check_same, model, ours, quiet, train

from gpukit.adapters.base import Base, canonical
from gpukit.adapters.names import check_base_name
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.peft_config import pattern_of
from gpukit.errors import AdapterError, GpukitError, NotFoundError, SafetensorsError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "models"
REAL = SHARED / "tiny-shakespeare-wiki-lora"
CONFIG = {"r": 2, "lora_alpha": 5, "target_modules": LINEAR}
AT = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("sound"), "llama", CONFIG)


@pytest.fixture
def copy(sound: Trained, tmp_path: Path) -> Trained:
    """The same with an adapter that a test may change."""
    shutil.copytree(sound.adapter, tmp_path / "adapter")
    return Trained(sound.base, tmp_path / "adapter", sound.merged)


def _configure(made: Trained, **changes: Any) -> None:
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _change(made: Trained, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _refused(
    made: Trained, message: str, kind: type[GpukitError] = AdapterError, **options: Any
) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_adapter(made.adapter, base_of(made.base), **options)
    assert "\n" not in str(caught.value)
    assert str(made.adapter.parent) in str(caught.value)


@pytest.mark.parametrize("letter", ["A", "B"])
def test_an_adapter_that_was_not_trained(letter: str, copy: Trained) -> None:
    with open_adapter(copy.adapter, base_of(copy.base)) as adapter:
        assert not any("zero" in line for line in adapter.warnings)
    first = {"kept": True}

    def empty(tensors: dict[str, torch.Tensor]) -> None:
        for name, values in tensors.items():
            if f"lora_{letter}." in name and not (first["kept"] and "v_proj" in name):
                values.zero_()

    _change(copy, empty)
    with open_adapter(copy.adapter, base_of(copy.base)) as adapter:
        assert not any("zero" in line for line in adapter.warnings)
    first["kept"] = False
    _change(copy, empty)
    with open_adapter(copy.adapter, base_of(copy.base)) as adapter:
        (line,) = (line for line in adapter.warnings if "zero" in line)
    assert line.endswith("every B·A in it is zero, so that it changes nothing: it was not trained")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "tuner": ({"peft_type": "LOHA"}, "LOHA cannot be merged, only LORA can: convert it with PEFT"),
    "future-tuner": ({"peft_type": "LORA3"}, "LORA3 cannot be merged"),
    "no-tuner": ({"peft_type": None}, "no peft_type"),
    "rank-0": ({"r": 0}, "the rank r is 0: such an adapter changes nothing"),
    "rank": ({"r": 3}, "A has rank 2, adapter_config.json says 3"),
    "rank-text": ({"r": "8"}, "the rank r is '8'; a whole number above 0"),
    "rank-huge": ({"r": 10**9}, "the rank r is 1000000000; 1048576 at most is possible"),
    "rank-pattern": ({"rank_pattern": {"q_proj": 4}}, "q_proj: A has rank 2, .* says 4"),
    "no-pattern": ({"alpha_pattern": {"(": 4}}, r"alpha_pattern: '\(' is no pattern"),
    "pattern-list": ({"rank_pattern": ["q_proj"]}, "rank_pattern is .* names with numbers"),
    "alpha": ({"lora_alpha": "x"}, "alpha lora_alpha is 'x'; a number is needed"),
    "alpha-huge": ({"lora_alpha": 10**400}, r"alpha lora_alpha is 10{39}; .* up to 1e\+30 is"),
    "stabilized": ({"use_rslora": "yes"}, "use_rslora is 'yes'; true or false"),
    "dora": ({"use_dora": True}, "proj: use_dora, and no lora_magnitude_vector"),
    "replicated": ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication: .* build that"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "aLoRA works .*gpukit adapter writes it"),
    "pissa": ({"init_lora_weights": "pissa_niter_16"}, "PiSSA changes the base.*path_initial"),
    "olora": ({"init_lora_weights": "olora"}, "OLoRA changes the base"),
    "corda": ({"init_lora_weights": "corda"}, "CorDA changes the base"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, "LoRA-GA changes the base"),
    "qa": ({"use_qalora": True}, "QA-LoRA cannot be merged: convert it"),
    "blocks": ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA cannot be merged"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "Arrow cannot be merged"),
    "kasa": ({"kasa_config": {}}, "KaSA cannot be merged"),
    "refused-by-peft": ({"task_type": "NOTHING"}, "PEFT refuses it: Invalid task type"),
    "tokens": ({"trainable_token_indices": ["a"]}, "trainable_token_indices .* numbers of tokens"),
    "saved": ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; a list of names"),
}  # fmt: skip


def test_warnings_are_printable(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {"r": 2, "target_modules": ["q_proj"]})
    path = made.adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "target_modules": ["q_proj", "\0\n"]}))
    with open_adapter(made.adapter, base_of(made.base)) as adapter:
        (line,) = adapter.warnings
    assert line.isprintable()
    assert "target_modules lists" in line


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_cannot_be_merged(case: str, copy: Trained) -> None:
    changes, message = CONFIGS[case]
    _configure(copy, **changes)
    _refused(copy, message)


def test_loftq_needs_the_base_that_it_wrote(copy: Trained) -> None:
    _configure(copy, init_lora_weights="loftq", loftq_config={"loftq_bits": 4})
    _refused(copy, "merge it with the base that LoftQ wrote")


def _without_b(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{AT}.lora_B.weight"]


def _twice(tensors: dict[str, torch.Tensor]) -> None:
    name = f"{AT}.lora_B.weight"
    tensors[name.removeprefix("base_model.model.")] = tensors[name].clone()


def _renamed(new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("lora_A.weight", "lora_B.weight"):
            tensors[f"base_model.model.{new}.{part}"] = tensors.pop(f"{AT}.{part}")

    return change


def _set(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({f"{AT}.{name}": torch.zeros(shape)})


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "no-b": (_without_b, "lora_A.weight is there, its B is not: truncated or edited"),
    "twice": (_twice, "are one tensor; remove one"),
    "layer": (_renamed("model.layers.7.self_attn.q_proj"), "layers.7.*: the base has 2 layers"),
    "module": (_renamed("model.layers.0.self_attn.k_prog"), "no such module: did you mean"),
    "rank": (_set("lora_B.weight", 16, 3), "q_proj: A has rank 2, B has 3"),
    "rows": (_set("lora_B.weight", 20, 2), r"B·A is \[20, 16\], .*q_proj.weight .* \[16, 16\]"),
    "width": (_set("lora_A.weight", 2, 20), r"B·A is \[16, 20\], .* another base"),
    "convolution": (_set("lora_A.weight", 2, 20, 1, 1), "a convolution cannot be merged"),
    "vector": (_set("lora_A.weight", 2), r"lora_A.weight has shape \[2\]: no matrix"),
    "unknown": (_set("lora_C.weight", 2), "lora_C.weight: unknown to LoRA; known ends are"),
    "nothing": (_set("running_mean", 2), "neither a part of LoRA nor a weight"),
    "dora": (_set("lora_magnitude_vector", 16), "does not say use_dora"),
    "tokens": (_set("token_adapter.trainable_tokens_delta", 1, 16), "does not list"),
    "bias": (_set("lora_B.bias", 16), r"lora_bias.*no .*q_proj\.bias that could take it"),
    "score": (
        lambda tensors: tensors.update({"base_model.model.score.weight": torch.zeros(2, 16)}),
        "score.weight: the base has no such module",
    ),
    "norm": (
        lambda tensors: tensors.update({"model.norm.weight": torch.zeros(17)}),
        r"model.norm.weight has shape \[17\], the base \[16\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, copy: Trained) -> None:
    change, message = TENSORS[case]
    _change(copy, change)
    _refused(copy, message)


def test_another_base_is_refused_by_its_shapes(sound: Trained, tmp_path: Path) -> None:
    with quiet():
        model("llama", hidden_size=32).save_pretrained(tmp_path / "wide")
    made = Trained(tmp_path / "wide", sound.adapter, sound.merged)
    with pytest.raises(AdapterError, match=r"B·A is \[16, 24\], .* has \[32, 24\]; this"):
        open_adapter(made.adapter, base_of(made.base))


def test_numbers_that_are_none_are_found_when_they_are_read(copy: Trained) -> None:
    for value, shown in ((float("nan"), "nan"), (float("inf"), "inf")):

        def change(tensors: dict[str, torch.Tensor], value: float = value) -> None:
            tensors[f"{AT}.lora_B.weight"][3, 1] = value

        _change(copy, change)
        with pytest.raises(AdapterError, match=rf"q_proj.lora_B.weight holds {shown} at \[3, 1\]"):
            ours(copy)


def test_tokens_out_of_range_or_of_another_number(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {**CONFIG, "trainable_token_indices": [3, 7]})
    for indices, message in (
        ([3, 40], r"token 40 of trainable_token_indices; there are 40"),
        ([3, -1], r"token -1 of trainable_token_indices; there are 40"),
        ([3, 3], "a token stands twice"),
        ([3], r"has shape \[2, 16\], 1 tokens of width 16 are listed"),
    ):
        _configure(made, trainable_token_indices=indices)
        _refused(made, message)


def test_folders_that_lack_something(copy: Trained, tmp_path: Path) -> None:
    weights, config = (
        copy.adapter / name for name in ("adapter_model.safetensors", "adapter_config.json")
    )
    data = weights.read_bytes()
    weights.write_bytes(data[:-5])
    _refused(copy, "truncated: ", SafetensorsError)
    weights.unlink()
    _refused(copy, "no weights .*found .*adapter_config.json")
    weights.write_bytes(data)
    text = config.read_text()
    config.write_text(text[:50])
    _refused(copy, "no JSON")
    config.unlink()
    _refused(copy, "no adapter_config.json; PEFT and mlx-lm write it beside the weights")
    (copy.adapter / "checkpoint-8").mkdir()
    (copy.adapter / "checkpoint-8" / "adapter_config.json").write_text(text)
    _refused(copy, "there is one in checkpoint-8: name that folder")
    with pytest.raises(AdapterError, match="a whole model is there, not an adapter"):
        open_adapter(copy.base, base_of(copy.base))
    with pytest.raises(NotFoundError, match="no such file or folder"):
        open_adapter(tmp_path / "nowhere", base_of(copy.base))


def test_the_file_of_weights_is_as_good_as_its_folder(copy: Trained) -> None:
    base = base_of(copy.base)
    with open_adapter(copy.adapter / "adapter_model.safetensors", base) as adapter:
        assert adapter.name == "adapter"
        check_same(apply(copy.stored(), adapter), copy.expected())
    with pytest.raises(AdapterError, match=r"README.md: no adapter's weights; adapter_model"):
        open_adapter(copy.adapter / "README.md", base)
    # PyTorch's own files of older adapters.
    path = copy.adapter / "adapter_model.safetensors"
    torch.save(load_file(path), copy.adapter / "adapter_model.bin")
    path.unlink()
    check_same(ours(copy)[0], copy.expected())


def test_warnings(copy: Trained) -> None:
    assert ours(copy)[1].warnings == ()
    _configure(
        copy, modules_to_save=["lm_head"], some_new_thing={"x": 1},
        base_model_name_or_path="org/Other-7B", alpha_pattern={"q_proj": 5, ".*proj": 4},
    )  # fmt: skip
    found = ours(copy)[1].warnings
    assert [w.partition(": ")[2].split()[0] for w in found] == [
        "settings", "modules_to_save", "several", "made",
    ]  # fmt: skip
    assert "ignored: some_new_thing" in found[0]
    assert "made for org/Other-7B, the base is base" in found[3]
    _refused(copy, "made for org/Other-7B, the base is base: give the base", strict=True)


SAME = (
    ("org/Model-7B", "/models/model-7b/"), ("unsloth/Model-7B-unsloth-bnb-4bit", "model-7b"),
    ("/x/models--org--Model-7B/snapshots/" + "0123456789" * 4, "Model-7B"), ("a\\b\\M", "m"),
)  # fmt: skip


def test_names_of_bases() -> None:
    for said, name in SAME:
        assert check_base_name(Path("x"), said, [name], strict=True) == []
    assert check_base_name(Path("x"), "Model-8B", ["Model-7B", "org/model-8b"], strict=True) == []
    assert check_base_name(Path("x"), "my_model-8B", ["My Model 8B"], strict=True) == []
    (line,) = check_base_name(Path("x"), "Model-8B", ["Model-7B"], strict=False)
    assert "made for Model-8B, the base is Model-7B" in line


def test_patterns_are_matched_as_peft_does() -> None:
    patterns = ["q_proj", "layers.1.*", "(k|v)_proj", r"model\.layers\.0", "lm_head", "proj"]
    for module in ("model.layers.0.q_proj", "model.layers.1.mlp", "a.k_proj", "xq_proj", "lm_head"):
        wanted = get_pattern_key(patterns, module)
        assert pattern_of(dict.fromkeys(patterns), module) == (
            wanted if wanted != module else ""
        ) or (wanted == module and module in patterns)


def test_every_other_tuner_of_peft_is_named(copy: Trained) -> None:
    for kind in peft.PeftType:
        if kind is not peft.PeftType.LORA:
            _configure(copy, peft_type=kind.value)
            _refused(copy, f"{kind.value} cannot be merged")


def test_names_that_are_the_same() -> None:
    assert canonical("base_model.model.model.layers.0.block_sparse_moe.experts.1.w1.weight") == (
        "layers.0.mlp.experts.1.gate_proj.weight"
    )
    assert canonical("model.language_model.layers.0.x") == canonical(
        "language_model.model.layers.0.x"
    )
    base = Base(Path("x"), {"model.a.weight": (1,), "a.weight": (1,)}, {})
    assert base.find("a.weight") == "a.weight"
    with pytest.raises(AdapterError, match=r"may be model\.a\.weight or a\.weight"):
        base.find("base_model.model.a.weight")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared adapter is not here")
def test_a_trained_adapter(tmp_path: Path) -> None:
    import transformers

    base = SHARED / "tiny-shakespeare"
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        wrapped = peft.PeftModel.from_pretrained(plain, REAL, autocast_adapter_dtype=False)
        wrapped = wrapped.double()
        wanted = wrapped.merge_and_unload().state_dict()
    stored = load_file(base / "model.safetensors")
    with open_adapter(REAL, base_of(base), strict=True) as adapter:
        assert adapter.warnings == ()
        assert len(adapter.deltas) == 28
        check_same(apply(stored, adapter), {name: wanted[name] for name in adapter.deltas})
