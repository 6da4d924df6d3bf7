"""GGUF adapters that are written mean what PEFT means, and llama.cpp takes them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.adapter_folders import ADAPTED, build
from support.adapters import (
    ATTENTION,
    DELTA_NET,
    FUSED,
    LINEAR,
    Trained,
    apply,
    base_of,
    check_near,
    fill,
    ours,
    quiet,
    train,
)
from support.llama_cpp_server import probabilities

import gpukit
from gpukit.adapters.opening import open_adapter
from gpukit.formats.gguf_reader import GGUFFile

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": [*LINEAR, "lm_head", "embed_tokens"], "lora_alpha": 3}),
    "llama-rank-pattern": ("llama", {"target_modules": LINEAR, "rank_pattern": {"q_proj": 3}}),
    "llama-alpha-pattern": ("llama", {"target_modules": LINEAR, "alpha_pattern": {"q_proj": 7}}),
    "llama-zero-alpha": ("llama", {"target_modules": LINEAR, "alpha_pattern": {"q_proj": 0}}),
    "llama-nothing": ("llama", {"target_modules": LINEAR, "lora_alpha": 0}),
    "llama-rs": ("llama", {"target_modules": LINEAR, "use_rslora": True}),
    "llama-rs-ranks": (
        "llama", {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"up_proj": 5}}
    ),
    "tied": ("llama-tied", {"target_modules": LINEAR, "lora_alpha": -3}),
    "qwen2": ("qwen2", {"target_modules": LINEAR}),
    "qwen3": ("qwen3", {"target_modules": LINEAR}),
    "qwen3.5": ("qwen3.5", {"target_modules": [*LINEAR, *DELTA_NET]}),
    "gemma2": ("gemma2", {"target_modules": LINEAR}),
    "gemma3": ("gemma3", {"target_modules": LINEAR}),
    "phi3": ("phi3", {"target_modules": FUSED}),
    "mixtral": ("mixtral", {"target_modules": ATTENTION, "target_parameters": EXPERTS}),
}  # fmt: skip
FOLDED = {"llama-alpha-pattern": 2, "llama-zero-alpha": 2, "llama-nothing": 14, "llama-rs-ranks": 2}


GOLDEN = json.loads((checkpoints.DATA / "golden" / "adapters.json").read_text())


@pytest.mark.parametrize("name", ADAPTED)
def test_the_bytes_are_llama_cpps(name: str, tmp_path: Path) -> None:
    assert GOLDEN.keys() == ADAPTED.keys()
    base, adapter = build(name, tmp_path)
    for kind, digest in GOLDEN[name].items():
        result = gpukit.write_adapter(adapter, base, out := tmp_path / "x.gguf", type=kind)
        assert result.folded == 0
        assert hashlib.sha256(out.read_bytes()).hexdigest() == digest, kind


def _trained(root: Path, case: str) -> Trained:
    family, config = CASES[case]
    return train(root, family, {"r": 2, "lora_alpha": 3, **config})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_the_delta(case: str, tmp_path: Path) -> None:
    made = _trained(tmp_path, case)
    result = gpukit.write_adapter(made.adapter, made.base, out := tmp_path / "out.gguf")
    assert result.size == out.stat().st_size
    told = [line.rpartition("safetensors: ")[2] for line in result.warnings]
    nothing = "a scale of 0 (alpha / rank): it changes nothing"
    assert told == [nothing] * (case == "llama-nothing")
    assert result.folded == FOLDED.get(case, 0)
    with GGUFFile(out) as file:
        assert ("gpukit.adapter.folded" in file.fields) == bool(result.folded)
    wanted, _ = ours(made)
    with open_adapter(out, base_of(made.base)) as adapter:
        found = apply(made.stored(), adapter)
    # A, B and alpha are rounded into float32 once each: three times 2**-24 of sums of 5 at most,
    # which are no larger than a few of the largest weight.
    check_near(found, wanted, 2e-6)


def test_a_model_of_the_store_as_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path / "models"))
    folder = checkpoints.build("narrow-heads", tmp_path)
    adapter = _adapter_of(folder, tmp_path / "my-lora")
    gpukit.Store().create("mine", gpukit.Modelfile(source=str(folder)), "Q8_0", device="cpu")
    gpukit.write_adapter(adapter, "mine", tmp_path / "x.gguf")
    gpukit.write_adapter(adapter / "adapter_model.safetensors", folder, tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    with pytest.raises(gpukit.NotFoundError, match="nobody"):
        gpukit.write_adapter(adapter, "nobody", tmp_path / "z.gguf")
    with pytest.raises(gpukit.ArgumentError, match="an adapter; its base is the model"):
        gpukit.write_adapter(adapter, tmp_path / "x.gguf", tmp_path / "z.gguf")


def test_copies_of_the_bases_own_tensors_are_left_out(tmp_path: Path) -> None:
    config = {"r": 2, "target_modules": ["q_proj", "lm_head", "embed_tokens"]}
    made = train(tmp_path, "llama", config)
    weights = made.adapter / "adapter_model.safetensors"
    values = load_file(weights)
    copies = [name for name in values if name.endswith("base_layer.weight")]
    assert len(copies) == 2
    gpukit.write_adapter(made.adapter, made.base, first := tmp_path / "first.gguf")
    # Rounded to another dtype it is a copy still.
    save_file({n: v.half() if n in copies else v for n, v in values.items()}, weights)
    gpukit.write_adapter(made.adapter, made.base, second := tmp_path / "second.gguf")
    assert first.read_bytes() == second.read_bytes()
    values[copies[0]][3, 4] += 1
    save_file(values, weights)
    with pytest.raises(gpukit.AdapterError, match="is replaced as a whole"):
        gpukit.write_adapter(made.adapter, made.base, tmp_path / "third.gguf")


def test_copies_are_taken_for_such_where_the_base_is_a_gguf(tmp_path: Path) -> None:
    folder = checkpoints.build("narrow-heads", tmp_path)
    config = {"r": 2, "target_modules": ["lm_head"]}
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
        wrapped = peft.get_peft_model(plain, peft.LoraConfig(**config))
        fill(wrapped)
        wrapped.save_pretrained(tmp_path / "lora")
    gpukit.convert(folder, file := tmp_path / "base.gguf", "F16", device="cpu")
    result = gpukit.write_adapter(tmp_path / "lora", file, tmp_path / "x.gguf")
    line = result.warnings[-1]
    assert "lm_head.base_layer.weight is taken for a copy of the base's lm_head.weight" in line
    assert gpukit.write_adapter(tmp_path / "lora", folder, tmp_path / "x.gguf").warnings == ()


@pytest.mark.parametrize(("kind", "near"), [("f16", 2e-2), ("BF16", 1e-1), ("Q8_0", 2e-2)])
def test_types(kind: str, near: float, tmp_path: Path) -> None:
    made = train(
        tmp_path, "llama", {"r": 2, "lora_alpha": 3, "target_modules": LINEAR},
        hidden_size=32, intermediate_size=40,
    )  # fmt: skip
    result = gpukit.write_adapter(made.adapter, made.base, out := tmp_path / "x.gguf", type=kind)
    # Rows of 32 fill a block, those of down_proj's A (40) and of every B (2) do not.
    mixed = {"Q8_0": 12, "F16": 16}
    assert result.types == (mixed if kind == "Q8_0" else {kind.upper(): 28})
    wanted, _ = ours(made)
    with open_adapter(out, base_of(made.base)) as adapter:
        check_near(apply(made.stored(), adapter), wanted, near)


def test_a_gguf_as_base_and_a_gguf_as_adapter_give_the_same_bytes(tmp_path: Path) -> None:
    folder = checkpoints.build("narrow-heads", tmp_path)
    adapter = _adapter_of(folder, tmp_path / "my-lora", use_rslora=True)
    gpukit.convert(folder, file := tmp_path / "base.gguf", "F16", device="cpu")
    for word in (folder, file):
        gpukit.write_adapter(adapter, word, tmp_path / f"{word.name}.gguf")
    first = tmp_path / "narrow-heads.gguf"
    assert first.read_bytes() == (tmp_path / "base.gguf.gguf").read_bytes()
    gpukit.write_adapter(first, file, second := tmp_path / "second.gguf")
    assert second.read_bytes() == first.read_bytes()
    with pytest.raises(gpukit.ArgumentError, match="input and output are the same file"):
        gpukit.write_adapter(first, file, first)
    with pytest.raises(gpukit.ArgumentError, match="input and output are the same file"):
        gpukit.write_adapter(first, file, file)


def _adapter_of(folder: Path, out: Path, **config: Any) -> Path:
    """An adapter of PEFT for the checkpoint `folder`, in float32."""
    settings = {"r": 4, "lora_alpha": 3, "target_modules": LINEAR, **config}
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wrapped = peft.get_peft_model(plain, peft.LoraConfig(**settings))
        torch.manual_seed(1)
        for name, values in wrapped.named_parameters():
            if "lora_" in name:
                values.data = torch.randn(values.shape) / 8
        wrapped.save_pretrained(out, save_embedding_layers=False)
        wrapped.merge_and_unload().save_pretrained(out.parent / "merged")
    return out


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("narrow-heads", {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]}),
        ("tied", {"use_rslora": True, "alpha_pattern": {"q_proj": 7}}),
    ],
)
def test_llama_cpp_says_with_it_what_the_merged_model_says(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = checkpoints.build(name, tmp_path)
    adapter = _adapter_of(folder, tmp_path / "my-lora", **config)
    for path in folder.iterdir():
        if not (tmp_path / "merged" / path.name).exists() and path.suffix != ".safetensors":
            (tmp_path / "merged" / path.name).write_bytes(path.read_bytes())
    out, base, merged = (tmp_path / f"{word}.gguf" for word in ("lora", "base", "all"))
    gpukit.write_adapter(adapter, folder, out)
    gpukit.convert(folder, base, "F32", device="cpu")
    gpukit.convert(tmp_path / "merged", merged, "F32", device="cpu")
    tokens = list(range(3, 40))
    ids, found = probabilities(base, tokens, [out])
    wanted_ids, wanted = probabilities(merged, tokens)
    plain_ids, _ = probabilities(base, tokens)
    assert ids[:5] == wanted_ids[:5] != plain_ids[:5]
    # Sums of float32 in another order, through two layers.
    assert (found - wanted).abs().max() < 1e-4


def test_the_metadata_is_llama_cpps(tmp_path: Path) -> None:
    made = train(tmp_path, "llama", {"r": 2, "lora_alpha": 3, "target_modules": LINEAR})
    card = "---\nlicense: mit\nbase_model: org/base-7b\n---\nA card.\n"
    (made.adapter / "README.md").write_text(card)
    gpukit.write_adapter(made.adapter, made.base, out := tmp_path / "x.gguf")
    reader = gguf.GGUFReader(out)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == [
        "general.architecture", "general.type", "adapter.type", "general.name",
        "general.license", "general.base_model.count", "general.base_model.0.name",
        "general.base_model.0.organization", "general.base_model.0.repo_url",
        "adapter.lora.alpha", "general.quantization_version",
    ]  # fmt: skip
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.lora.alpha"].contents() == 3.0
    assert [t.name for t in reader.tensors][:2] == [
        "blk.0.ffn_down.weight.lora_a", "blk.0.ffn_down.weight.lora_b",
    ]  # fmt: skip
