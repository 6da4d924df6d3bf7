"""What the importers refuse, and metadata that contradict themselves: one line with both sides."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from support.zoo import YARN, ZOO
from support.zoo_build import build, tensors

from gpukit.errors import CheckpointError, GGUFError, GpukitError, TokenizerError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_fields import Field, ValueType, array, f32, string, u32
from gpukit.models.importer import plan_import
from gpukit.models.registry import architecture_of
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source


def plan(folder: Path, **config: Any) -> Any:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with Checkpoint(folder) as checkpoint:
        return plan_import(checkpoint, pre=ZOO[folder.name].pre)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("qwen2", {"head_dim": 48}, "8 heads of head_dim 48 are not hidden_size 256, which a q"),
        ("qwen2", {"rope_scaling": {"type": "llama3", "factor": 8}}, "'llama3' cannot be written"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; a qwen2 GGUF is run with silu"),
        ("qwen2-window", {"layer_types": ["full_attention"]}, "1 layer_types for 3 num_hidden_la"),
        ("qwen2-window", {"layer_types": ["linear"] * 3}, "layer_types hold other than sliding_at"),
        ("qwen2-window", {"max_window_layers": -1}, "max_window_layers is -1"),
        ("qwen2-window", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen3", {"head_dim": 32}, r"config.json asks for \[256, 256\]|\[32\]"),
        ("qwen3", {"attention_bias": True}, r"8 tensors .*q_proj.bias.*missing of"),
        ("mistral-nemo", {"head_dim": 16}, r"shape \[48, 96\], config.json asks for \[32, 96\]"),
        ("gemma", {"tie_word_embeddings": False}, "a gemma GGUF has no head of its own"),
        ("gemma", {"hidden_act": "silu"}, "'silu'; a gemma GGUF is run with gelu_pytorch_tanh"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ("gemma2", {"hidden_activation": "gelu_new"}, "'gelu_new'; a gemma2 GGUF is run with gel"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; a positive number"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "a gemma3 GGUF has no cap of scores"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1e6}}, "has no full_attention"),
        (
            "gemma3-linear",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "yarn"}}},
            "scaling 'yarn' of sliding_attention cannot be written into a gemma3 GGUF",
        ),
        ("phi3-4k", {"head_dim": 16}, "8 heads of head_dim 16 are not hidden_size 256, which a p"),
        ("phi3-4k", {"partial_rotary_factor": 0.1}, "0.1 of head_dim 32 is no even number"),
        ("phi3-4k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' cannot be w"),
        ("phi3-4k", {"rope_scaling": {"type": "su", "long_factor": [1] * 15}}, "15 values; 16 are"),
        ("phi3-4k", {"rope_scaling": {"type": "longrope"}}, "long_factor .* is None; 16 are "),
        (
            "phi3-4k",
            {"rope_scaling": {"type": "su", "long_factor": [1] * 16, "short_factor": [0] * 16}},
            "short_factor is 0; a positive number",
        ),
        (
            "phi3-4k",
            {"rope_scaling": {"type": "su", "long_factor": [1] * 16, "short_factor": [1] * 16,
                              "factor": 4}},
            "factor 4 of the RoPE scaling is not 8, which follows from contexts of 512 and 64",
        ),
        (
            "phi4-mini",
            {"original_max_position_embeddings": 128},
            "embeddings is 128, that of the RoPE scaling 64; give both the one that",
        ),
        (
            "phi4-mini",
            {"original_max_position_embeddings": None},
            "embeddings is 4096, that of the RoPE scaling 64",
        ),
        ("qwen2", {"rope_scaling": {**YARN, "truncate": False}}, "truncate .* is false; .* qwen2 "),
        ("qwen2", {"rope_scaling": {**YARN, "mscale": 1, "mscale_all_dim": 2}}, "mscale 1 and "),
        ("qwen2", {"rope_scaling": {**YARN, "mscale": 1, "mscale_all_dim": 1}}, "dim 1 of the "),
        ("gemma", {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear' cannot be written"),
        ("mixtral-12", {"num_experts_per_tok": 13}, "num_experts_per_tok is 13, num_local_experts"),
        ("mixtral-12", {"num_local_experts": 13}, r"9 tensors .*experts.12.w1.*missing of"),
        ("mixtral-12", {"num_local_experts": 11}, r"9 tensors .*experts.11.w1.*unknown to llama"),
        ("qwen3-moe", {"norm_topk_prob": False}, "norm_topk_prob is false; a qwen3moe GGUF is run"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is .0.; every layer"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2; every layer"),
        ("qwen3-moe", {"num_experts": 2}, "num_experts_per_tok is 3, num_experts is 2"),
        ("qwen3-moe", {"moe_intermediate_size": 512}, r"experts.0.down_proj"),
        ("glm4-moe", {"partial_rotary_factor": 0.02}, "0.02 of head_dim 48 is no even number"),
        ("glm4-moe", {"n_group": 3}, r"2 of 4 experts .* 1 \(topk_group\) of 3 groups \(n_group\)"),
        ("glm4-moe-groups", {"topk_group": 4}, r"3 of 12 .* in 4 \(topk_group\) of 4"),
        ("glm4-moe-groups", {"topk_group": 1, "num_experts_per_tok": 4}, "4 of 12 experts cannot"),
        ("glm4-moe", {"first_k_dense_replace": -1}, "first_k_dense_replace is -1"),
        ("glm4-moe", {"num_nextn_predict_layers": 0}, "layers.2.eh_proj.*unknown to glm4moe"),
        ("glm4-moe", {"num_nextn_predict_layers": 2**31 - 1}, "; llama.cpp loads 510 at most"),
        ("glm4-moe", {"use_qk_norm": False}, "k_norm.*unknown to glm4moe"),
        ("qwen3.5", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05; a qwen35 GGUF has one"),
        ("qwen3.5", {"attention_bias": True}, "attention_bias is true; a qwen35 GGUF has no bias"),
        ("qwen3.5", {"attn_output_gate": False}, "attn_output_gate is false; attention of a q"),
        ("qwen3.5", {"hidden_act": "gelu"}, "'gelu'; a qwen35 GGUF is run with silu"),
        ("qwen3.5", {"linear_num_value_heads": 5}, "heads 5 is no multiple of .*_key_heads 2"),
        ("qwen3.5", {"linear_value_head_dim": 32}, "64 is not linear_value_head_dim 32; a"),
        ("qwen3.5", {"linear_conv_kernel_dim": 1}, "dim is 1; a qwen35 GGUF has 2 at least"),
        ("qwen3.5", {"linear_num_key_heads": 4}, r"conv1d.* \[512, 1, 4\], .* \[768, 1, 4\]"),
        ("qwen3.5", {"layer_types": ["sliding_attention"] * 4}, "hold other than linear_attention"),
        ("qwen3.5", {"layer_types": ["full_attention"]}, "1 layer_types for 4 num_hidden_layers"),
        ("qwen3.5", {"layer_types": ["linear_attention"] * 4}, r"layers.3.linear_attn.*missing"),
        ("qwen3.5", {"mtp_num_hidden_layers": None}, "mtp.* unknown to qwen35 with this"),
        ("qwen3.5", {"rope_parameters": {"mrope_section": [4, 4, 0]}}, r"4, 4, 0\] does not reach"),
        ("qwen3.5", {"rope_parameters": {"mrope_section": 8}}, "mrope_section is 8; whole number"),
        ("qwen3.5", {"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic' cannot be written"),
        ("qwen3.5-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, num_experts is 8"),
        ("qwen3.5-moe", {"shared_expert_intermediate_size": 256}, r"shared_expert.* \[256, 512"),
        ("gpt-oss-bf16", {"swiglu_limit": 5}, "swiglu_limit is 5.0; a gpt-oss GGUF is run with 7"),
        ("gpt-oss-bf16", {"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0; a gpt-oss GGUF is run with"),
        ("gpt-oss-bf16", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; a gpt-oss GGUF is run wi"),
        ("gpt-oss-bf16", {"attention_bias": False}, "attention_bias is false; a gpt-oss GGUF has"),
        ("gpt-oss-bf16", {"tie_word_embeddings": True}, "is true; a gpt-oss GGUF has a head of it"),
        ("gpt-oss-bf16", {"sliding_window": None}, "sliding_window is null; layers of a gpt-oss"),
        ("gpt-oss-bf16", {"rope_scaling": YARN}, "truncate of the RoPE scaling is true; the YaRN"),
        ("gpt-oss-bf16", {"num_experts_per_tok": 4}, "num_experts_per_tok is 4, num_local_experts"),
        ("gpt-oss-bf16", {"intermediate_size": 96}, r"gate_proj.bias has shape \[3, 160\], config"),
        ("gpt-oss", {"num_local_experts": 5}, r"down_proj.bias has shape \[4, 256\], config.json"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1, 1]}, r"is \[1, 1, 0, 1, 1\]; a smollm3"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, r"is .1, 0, 1, 0, 1.;"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window is true; layers of"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0; a positive number"),
        ("olmo2", {"attention_bias": True}, "attention_bias is true; an olmo2 GGUF has no biases"),
        ("olmo3", {"sliding_window": None}, "sliding_window is null; layers of an OLMo 3 have one"),
        (
            "olmo3",
            {"rope_parameters": {"full_attention": YARN, "sliding_attention": YARN}},
            "scaling 'yarn' of sliding_attention cannot be written into a olmo2 GGUF",
        ),
        ("olmo3", {"layer_types": ["full_attention"]}, "1 layer_types for 2 num_hidden_layers"),
        ("granite", {"head_dim": 48}, "8 heads of head_dim 48 are not hidden_size 256"),
        ("ministral3", {"model_type": "mistral4"}, "'mistral4', a model with latent attention"),
        ("ministral3", {"rope_parameters": {"rope_type": "linear"}}, "'linear' of a ministral3"),
        ("ministral3", {"rope_parameters": YARN}, "no llama_4_scaling_beta"),
        (
            "ministral3",
            {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1, "mscale": 2.0,
                                 "mscale_all_dim": 2.0}},
            "mscale 2 and mscale_all_dim 2 of the RoPE scaling; a mistral3 GGUF is run with an",
        ),
        (
            "ministral3",
            {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1, "mscale_all_dim": 1.0}},
            "mscale 0 and mscale_all_dim 1 of",
        ),
        ("mistral-small-3.1", {"vision_config": None, "tie_word_embeddings": 1}, "word_embeddings"),
        ("mistral-v0.1", {"sliding_window": "wide"}, "sliding_window is 'wide'"),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit(
    name: str, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = build(name, tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        plan(folder, **config)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("qwen2", {"model.layers.1.self_attn.k_proj.bias": None}, r"k_proj.bias\) missing of 27"),
        ("qwen3", {"model.layers.0.self_attn.q_norm.weight": None}, r"q_norm.weight\) missing of"),
        ("mistral-v0.3", {"model.layers.0.self_attn.q_proj.bias": 96}, "bias.* unknown to llama"),
        ("qwen3-untied", {"lm_head.weight": None}, r"1 tensor \(lm_head.weight\) missing"),
        ("qwen3.5", {"mtp.pre_fc_norm_hidden.weight": None}, r"1 tensor \(mtp.pre_fc_norm_hidden"),
        ("glm4-moe", {"model.layers.2.hnorm.weight": None}, r"1 tensor \(.*hnorm.weight\) missing"),
    ],
)
def test_tensors_that_do_not_fit(
    name: str, changes: dict[str, int | None], words: str, tmp_path: Path
) -> None:
    folder, found = build(name, tmp_path), tensors(name)
    for key, width in changes.items():
        if width is None:
            del found[key]
        else:
            found[key] = next(iter(found.values()))[0, :width].clone()
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        plan(folder)


def test_experts_of_several_dtypes_are_told(tmp_path: Path) -> None:
    folder, found = build("mixtral-8x7b", tmp_path), tensors("mixtral-8x7b")
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    found[name] = found[name].float()
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"experts\.3\.w2\.weight is F32, .*0\.w2.* is BF16"):
        plan(folder)


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    folder = build("gemma3-vision", tmp_path)
    found = tensors("gemma3-vision")
    name = next(name for name in found if name.endswith("embed_tokens.weight"))
    other = name.replace("language_model.", "", 1)
    assert other != name
    save_file(found | {other: found[name].clone()}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"are one tensor of gemma3, .*; remove one"
    ) as caught:
        plan(folder)
    assert name in str(caught.value)
    assert other in str(caught.value)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    with open_source(build("gemma-f32-head", tmp_path)) as source:
        (line,) = plan_quantize(source, "F16").warnings
        assert len(source.tensors) == 29
    assert "1 tensor (lm_head.weight) left out: a gemma GGUF has no place for them" in line
    with open_source(build("gemma3-vision", tmp_path)) as source:
        (line,) = source.warnings
    assert "2 tensors (multi_modal_projector.mm_soft_emb_norm.weight, vision_tower." in line


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    folder = build("mistral-v0.1", tmp_path)
    assert plan(folder).config.window == 40
    for window in (None, 512, 4096):
        assert plan(folder, sliding_window=window).config.window == 0
    # Where config.json does not say, MistralConfig does.
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    with Checkpoint(folder) as checkpoint:
        assert plan_import(checkpoint).config.window == 4096


def test_windows_of_qwen_layers(tmp_path: Path) -> None:
    folder = build("qwen2-window", tmp_path)
    assert plan(folder).config.windowed == (False, True, True)
    assert plan(folder, max_window_layers=0).config.windowed == ()
    assert plan(folder, max_window_layers=3).config.window == 0
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    assert plan(folder, layer_types=kinds).config.windowed == (True, False, False)
    assert plan(folder, use_sliding_window=False).config.window == 0


def _fields(folder: Path, *changes: Field) -> dict[str, Field]:
    found = {field.key: field for field in plan(folder).fields}
    return {**found, **{field.key: field for field in changes}}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "qwen2-window",
            array("qwen2.attention.sliding_window_pattern", ValueType.BOOL, [True]),
            "sliding_window_pattern has 1 entries for 3 layers",
        ),
        ("qwen3", u32("qwen3.attention.value_length", 7), "value_length is 7, the keys have 48"),
        ("mistral-nemo", u32("llama.rope.dimension_count", 16), "is 16, the keys have 24"),
        ("phi4-mini", u32("phi3.rope.dimension_count", 18), "is 18, the keys have 16"),
        ("qwen2-yarn", f32("qwen2.rope.scaling.yarn_ext_factor", 0.5), "YaRN can be run with 1"),
        ("qwen2-yarn", string("qwen2.rope.scaling.type", "su"), "'su'; none, linear and yarn can"),
        ("mistral-nemo", u32("llama.expert_count", 3), "no llama.expert_used_count"),
        ("mixtral-12", u32("llama.expert_count", 2), "expert_used_count is 3, there are 2 experts"),
        (
            "qwen3.5",
            u32("qwen35.ssm.inner_size", 128),
            "4 heads of 64, inner size 128, 4 taps do not",
        ),
        (
            "qwen3.5",
            array("qwen35.attention.recurrent_layers", ValueType.BOOL, [True]),
            "recurrent_layers has no 5 entries, one for each layer",
        ),
        ("glm4-moe", u32("glm4moe.expert_gating_func", 4), "_func is 4; 1, 2, 3 can be run"),
        ("glm4-moe", u32("glm4moe.nextn_predict_layers", 3), "predict_layers is 3 of 3 layers"),
        (
            "glm4-moe",
            u32("glm4moe.expert_group_count", 3),
            "_count is 3, 1 of them used, for 2 of 4",
        ),
    ],
)
def test_metadata_that_contradict_themselves(
    name: str, change: Field, words: str, tmp_path: Path
) -> None:
    found = _fields(build(name, tmp_path), change)
    with pytest.raises(GGUFError, match=words):
        architecture_of(found["general.architecture"].value, "x").restore(found)


def test_metadata_become_the_configuration_that_they_came_from(tmp_path: Path) -> None:
    for name in (
        "qwen2-window",
        "mistral-v0.1",
        "qwen3-untied",
        "gemma2",
        "gemma2-otherwise",
        "gemma3-linear",
        "gemma3-otherwise",
        "gpt-oss-otherwise",
        "phi3-4k",
        "phi4-mini",
        "glm4-moe",
        "glm4-moe-groups",
        "ministral3",
        "olmo3",
        "olmo3-bases",
    ):
        config = plan(build(name, tmp_path)).config
        found = _fields(tmp_path / name)
        restored = architecture_of(config.arch, "x").restore(found)
        assert (restored.window, restored.windowed) == (config.window, config.windowed)
        assert restored.rope_rounded == config.rope_rounded
        assert restored.attention_scale == pytest.approx(config.attention_scale, rel=1e-6)
        assert (restored.attention_cap, restored.logit_cap) == (
            config.attention_cap, config.logit_cap
        )  # fmt: skip
        assert restored.attention_growth == pytest.approx(config.attention_growth, rel=1e-6)
        assert restored.rope_log_multiplier == config.rope_log_multiplier
        assert restored.rope_theta_local == config.rope_theta_local
        assert restored.rope_magnitude == pytest.approx(config.rope_magnitude, rel=1e-6)
        assert (restored.n_layer, restored.n_nextn) == (config.n_layer, config.n_nextn or 0)
        assert (restored.n_expert_shared, restored.n_dense) == (
            config.n_expert_shared, config.n_dense
        )  # fmt: skip
        assert restored.n_rot == (config.n_rot or config.head_dim)
        assert (restored.head_dim, restored.n_head_kv) == (config.head_dim, config.n_head_kv)


def test_a_token_that_an_architecture_has_is_missing(tmp_path: Path) -> None:
    folder = build("glm4-moe", tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[gMASK]", "[mask]"))
    with pytest.raises(TokenizerError, match=r"no added token \[gMASK\] in tokenizer.json"):
        plan(folder)


def test_tekken_alone_is_told(tmp_path: Path) -> None:
    folder = build("ministral3", tmp_path)
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    with pytest.raises(TokenizerError, match=r"no tokenizer.json beside tekken.json"):
        plan(folder)


def test_a_period_of_windows_is_read(tmp_path: Path) -> None:
    period = u32("qwen2.attention.sliding_window_pattern", 3)
    restored = architecture_of("qwen2", "x").restore(
        _fields(build("qwen2-window", tmp_path), period)
    )
    assert [restored.window_of(layer) for layer in range(3)] == [32, 32, 0]


def test_an_unknown_architecture_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        GpukitError, match=r"cannot run architecture 'qwen9'; known: .*llama, .*phi3, qwen2"
    ):
        architecture_of("qwen9", "x.gguf")
