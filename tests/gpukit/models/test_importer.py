"""What an import refuses, and the pieces of a plan that whole files do not show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import build, weights
from support.fuzz_folders import fuzz

from gpukit.errors import CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import float_type, with_file_type
from gpukit.models.importer import plan_import
from gpukit.models.llama import to_pairs
from gpukit.models.rules import PlannedTensor, Span, auto_type


def changed(folder: Path, **config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def plan(folder: Path) -> Any:
    with Checkpoint(folder) as checkpoint:
        return plan_import(checkpoint)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForCausalLn"]}, "unknown architecture.*near: LlamaForCausalLM"),
        ({"architectures": ["MambaForCausalLM"]}, "unknown architecture 'MambaForCausalLM'; known"),
        ({"architectures": []}, "no architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is the text 'Llama.*; a list is"),
        ({"architectures": [5]}, r"architectures is \[5\]; a list is needed, as"),
        ({"quantization_config": []}, r"config.json: quantization_config is \[\]; an object"),
        ({"text_config": "x"}, "config.json: text_config is 'x'; an object"),
        ({"max_position_embeddings": 2**40}, "is 1099511627776; a whole number up to 21474"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 10{12}; llama.cpp loads 512 at"),
        ({"num_attention_heads": 10**60}, "is 10{39}; a whole number up to 2147483647 is"),
        ({"hidden_size": -4}, "hidden_size is -4; a positive whole number"),
        ({"hidden_size": "many"}, "hidden_size is 'many'"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5"),
        ({"num_key_value_heads": 3}, "8 heads are no multiple of 3"),
        ({"head_dim": 31}, "head_dim 31 is odd"),
        ({"hidden_size": 260, "num_attention_heads": 8}, "hidden_size 260 is no multiple of 8"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 1e-60}, "rms_norm_eps is 1e-60; .*float32's range"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; a number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; true or false"),
        ({"is_causal": False}, "is_causal is false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; .*silu"),
        ({"attention_bias": True}, r"8 tensors .*q_proj.bias.*missing"),
        ({"mlp_bias": True}, r"6 tensors .*gate_proj.bias.*missing"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "'longrope' cannot be written"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: no factor; a positive number"),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 2}}, "'ntk'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "json: rope_parameters: no factor; a pos"),
        ({"rope_parameters": 7}, "rope_parameters is 7; an object"),
        ({"num_hidden_layers": 3}, "9 tensors .*missing of 30"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers is 1073741824; llama.cpp loads 512 at"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}, "head_dim": 2**30}, "has shape"),
        ({"num_hidden_layers": 1}, "9 tensors .*unknown to llama"),
        ({"intermediate_size": 500}, r"has shape \[256, 512\], config.json asks for \[256, 500\]"),
        ({"vocab_size": 2049}, r"\[2048, 256\], config.json asks for \[2049, 256\]"),
    ],
)
def test_configurations_that_do_not_fit(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = changed(build("plain", tmp_path), **config)
    with pytest.raises(CheckpointError, match=words) as caught:
        plan(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_150_folders_with_a_change_somewhere() -> None:
    outcomes = fuzz(150, 1)
    assert outcomes.total() == 150
    # Files of every kind are changed, with both ends reached.
    assert len({what.split()[0] for what in outcomes}) == 10
    assert len({what.split()[1] for what in outcomes}) == 2


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    tensors = weights("plain")
    tensors["model.norm.weight"] = torch.zeros(256, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is I8"):
        plan(folder)


def test_what_carries_nothing_is_skipped(tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    tensors = weights("plain")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    save_file(tensors, folder / "model.safetensors")
    assert len(plan(folder).tensors) == len(tensors) - 1


@pytest.mark.parametrize("name", ["plain", "tied"])
def test_names_of_the_base_class(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path)
    usual = plan(folder)
    bare = {key.removeprefix("model."): tensor for key, tensor in weights(name).items()}
    save_file(bare, folder / "model.safetensors")
    found = plan(folder)
    assert {t.name for t in found.tensors} == {t.name for t in usual.tensors}
    sources = {t.name: t.spans[0].source for t in usual.tensors}
    assert {t.name: _prefixed(t.spans[0].source) for t in found.tensors} == sources
    assert found.fields == usual.fields
    # Names of both kinds are those of no model.
    del bare["norm.weight"]
    save_file({**bare, "model.norm.weight": torch.zeros(256)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors \(model\.embed_tokens\.weight, .*missing"):
        plan(folder)


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"bits": 4},
    ],
)
def test_settings_of_a_quantisation_that_is_not_there(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = build("plain", tmp_path)
    usual = plan(folder)
    found = plan(changed(folder, quantization_config=settings))
    assert found.fields == usual.fields
    assert [t.name for t in found.tensors] == [t.name for t in usual.tensors]
    (line,) = found.warnings
    method = settings.get("quant_method", "unknown")
    assert line == (
        f"{folder / 'config.json'}: a quantisation ({method}) that no tensor shows; all are plain "
        "floats and read as that"
    )
    changed(folder, quantization_config=None)
    other = {"quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(other))
    (line,) = plan(folder).warnings
    assert line.startswith(f"{folder / 'hf_quant_config.json'}: a quantisation (modelopt)")
    # One tensor of integers is enough.
    more = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, dtype=torch.int32)}
    save_file(weights("plain") | more, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"quantised \(modelopt, NVFP4\)"):
        plan(folder)


def test_a_missing_head_is_an_error_unless_tied(tmp_path: Path) -> None:
    folder = build("tied", tmp_path)
    assert plan(folder).config.tied
    with pytest.raises(CheckpointError, match=r"1 tensor \(lm_head.weight\) missing"):
        plan(changed(folder, tie_word_embeddings=False))


def test_the_permutation_is_local_to_heads() -> None:
    whole = torch.arange(4 * 6 * 5).view(24, 5)
    parts = torch.cat([to_pairs(whole[at : at + 12], 6) for at in (0, 12)])
    assert torch.equal(to_pairs(whole, 6), parts)
    bias = torch.arange(24).view(1, 24)
    assert torch.equal(to_pairs(bias, 6)[0], to_pairs(bias.view(24, 1), 6)[:, 0])
    assert to_pairs(bias, 6)[0, :6].tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("name", "ne", "wanted", "kind"),
    [
        ("blk.0.attn_q.weight", (64, 64), "BF16", "BF16"),
        ("blk.0.attn_norm.weight", (64,), "F16", "F32"),
        ("blk.0.attn_q.bias", (64,), "F16", "F32"),
        ("blk.0.ffn_gate_inp.weight", (64, 8), "Q8_0", "F32"),
        ("blk.0.attn_q.weight", (33, 64), "Q8_0", "F16"),
        ("blk.0.odd", (64, 64), "F16", "F32"),
    ],
)
def test_float_types(name: str, ne: tuple[int, ...], wanted: str, kind: str) -> None:
    assert float_type(name, ne, wanted) == kind


@pytest.mark.parametrize(("name", "kind"), [("plain", "BF16"), ("f16", "F16"), ("f32", "F16")])
def test_the_type_that_is_chosen_without_a_word(name: str, kind: str, tmp_path: Path) -> None:
    found = plan(build(name, tmp_path))
    assert auto_type(found.tensors) == kind
    numbers = [f.value for f in with_file_type(found.fields, 7) if f.key == "general.file_type"]
    assert numbers == [7]


def test_the_first_half_precision_weight_decides() -> None:
    def tensor(dtype: str, *ne: int) -> PlannedTensor:
        return PlannedTensor("blk.0.attn_q.weight", ne, (Span.whole("x", ne[::-1]),), dtype)

    assert auto_type([tensor("F16", 4), tensor("F32", 4, 4), tensor("BF16", 4, 4)]) == "BF16"
    assert auto_type([tensor("F32", 4, 4), tensor("F16", 4, 4), tensor("BF16", 4, 4)]) == "F16"
    assert auto_type([]) == "F16"
