"""Gemma 4: what its configurations and files say that others do not, and what they may not say."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.loras import lora
from support.zoo import FULL, SLIDING, ZOO
from support.zoo_build import build

import gpukit
from gpukit.errors import AdapterError, CheckpointError, GGUFError, TokenizerError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_fields import Field, ValueType, array, u32
from gpukit.generation.generate import GenerateOptions, stream
from gpukit.generation.loading import load_model
from gpukit.generation.sampling import SamplingOptions
from gpukit.models import gemma4, gemma4_config
from gpukit.models.importer import plan_import
from gpukit.models.weights import Site, Weights
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer

NAMES = [name for name in ZOO if ZOO[name].is_gemma4]
ROPE = ZOO["gemma4-31b"].config["rope_parameters"]


def read(name: str, **changes: Any) -> Any:
    """The configuration of a checkpoint with some keys of its text changed."""
    config = dict(ZOO[name].config)
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], **changes}
        return gemma4.read(config)
    return gemma4.read({**config, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma4-31b", {"hidden_activation": "silu"}, "a gemma4 GGUF is run with gelu_pytorch"),
        ("gemma4-31b", {"use_bidirectional_attention": "all"}, "'all'; a gemma4 GGUF has causal"),
        ("gemma4-31b", {"attention_bias": True}, "a gemma4 GGUF has no biases"),
        ("gemma4-31b", {"layer_types": [FULL] * 3}, "no layer has a window; llama.cpp runs no"),
        ("gemma4-31b", {"global_head_dim": 31}, "layer 2 has 6 heads .* of 31 values; a multiple"),
        ("gemma4-31b", {"num_global_key_value_heads": 4}, "layer 2 has 6 heads and 4 key-value"),
        ("gemma4-31b", {"num_kv_shared_layers": 2}, "is 2 of 3 layers; llama.cpp runs models of"),
        ("gemma4-31b", {"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1"),
        (
            "gemma4-e2b",
            {"layer_types": [SLIDING, FULL, FULL, SLIDING, SLIDING, FULL]},
            "layer 4 share keys and values of layer 2, transformers of layer 3",
        ),
        ("gemma4-e2b", {"vocab_size_per_layer_input": 7}, "is 7, vocab_size 2048; a gemma4 GGUF"),
        (
            "gemma4-31b",
            {"rope_parameters": {**ROPE, SLIDING: {"rope_type": "linear", "factor": 2.0}}},
            "RoPE 'proportional' of full_attention, 'linear' of sliding_attention; a gemma4 GGUF",
        ),
        (
            "gemma4-31b",
            {"rope_parameters": {**ROPE, FULL: {"rope_type": "yarn", "factor": 2.0}}},
            "RoPE 'yarn' of full_attention",
        ),
        (
            "gemma4-31b",
            {"rope_parameters": {FULL: {**ROPE[FULL], "partial_rotary_factor": 1.5}}},
            "partial_rotary_factor is 1.5",
        ),
        ("gemma4-31b", {"rope_parameters": {"rope_theta": 1e6}}, "has no full_attention"),
        ("gemma4-saved", {"per_layer_config": {"1": {"head_dim": 16}}}, "per_layer_config has oth"),
        (
            "gemma4-saved",
            {"per_layer_config": {"1": {"head_dim": 16}, "2": {"head_dim": 32}}},
            "a gemma4 GGUF can say no more",
        ),
        (
            "gemma4-saved",
            {"per_layer_config": {"1": {"sliding_window": 9}, "2": {"sliding_window": 9}}},
            "other than one head_dim and num_key_value_heads",
        ),
        ("gemma4-26b-a4b", {"num_experts": None}, "no num_experts"),
        ("gemma4-26b-a4b", {"top_k_experts": 9}, "top_k_experts is 9, num_experts is 8"),
        ("gemma4-26b-a4b", {"moe_intermediate_size": None}, "no moe_intermediate_size"),
    ],
)
def test_what_a_file_cannot_say(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read(name, **changes)
    assert "\n" not in str(caught.value)


def test_defaults_are_those_of_the_class() -> None:
    model = gemma4.read({"head_dim": 64, "num_hidden_layers": 12})
    assert (model.window, model.n_ctx, model.n_embd_layer) == (512, 131072, 256)
    assert (model.head_dim, model.head_dim_local, model.logit_cap) == (512, 64, 0)
    assert model.windowed == (True, True, True, True, True, False) * 2
    assert (model.rope_theta, model.rope_theta_local, model.rope_part) == (1e6, 1e4, 0.25)
    unified = gemma4_config.read_unified({"text_config": {}, "tie_word_embeddings": False})
    assert (unified.window, unified.n_ctx, unified.n_embd_layer) == (1024, 262144, 0)
    assert not unified.tied
    # What every token would look up has no place where the width is null.
    assert gemma4.read({"hidden_size_per_layer_input": None}).n_embd_layer == 0
    assert read("gemma4-31b", rope_parameters={FULL: {"rope_type": "default"}}).rope_part == 1


@pytest.mark.parametrize(("part", "factor"), [(0.25, 1.0), (0.3, 4.0), (1.0, 1.0)])
def test_frequencies_are_those_of_transformers(part: float, factor: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

    rope = {**ROPE[FULL], "partial_rotary_factor": part, "factor": factor}
    config = {**ZOO["gemma4-31b"].config, "rope_parameters": {**ROPE, FULL: rope}}
    peer = Gemma4TextRotaryEmbedding(transformers.Gemma4TextConfig(**config))
    wanted = peer.full_attention_inv_freq
    model = gemma4.read(config)
    (divisors,) = gemma4.computed(model)
    assert divisors.values is not None
    exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float32) / model.head_dim
    found = 1.0 / model.rope_theta**exponents / torch.from_numpy(divisors.values)
    # What does not turn turns by 1e-30 a position, which is nothing.
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-29)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gemma4")
    for name in NAMES:
        build(name, root)
    return root


def _fields(folder: Path) -> dict[str, Field]:
    with Checkpoint(folder) as checkpoint:
        return {field.key: field for field in plan_import(checkpoint).fields}


@pytest.mark.parametrize("name", NAMES)
def test_metadata_become_the_configuration_that_they_came_from(name: str, folders: Path) -> None:
    with Checkpoint(folders / name) as checkpoint:
        config = plan_import(checkpoint).config
    found = gemma4.restore(_fields(folders / name), "gemma4")
    for key in ("window", "windowed", "head_dim", "head_dim_local", "n_kv_shared", "n_embd_layer",
                "n_expert", "n_expert_used", "expert_ff", "logit_cap", "rope_theta",
                "rope_theta_local", "attention_scale"):  # fmt: skip
        assert getattr(found, key) == getattr(config, key), key
    for layer in range(config.n_layer):
        ours, theirs = found.at(layer), config.at(layer)
        assert (ours.n_head_kv, ours.n_ff) == (theirs.n_head_kv, theirs.n_ff)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gemma4-e2b", u32("gemma4.attention.shared_kv_layers", 3), "is 3 of 6; before them the"),
        ("gemma4-e2b", u32("gemma4.attention.shared_kv_layers", 5), "is 5 of 6; before them the"),
        ("gemma4-e2b", u32("gemma4.attention.value_length_swa", 8), "swa is 8, the keys have 32"),
        ("gemma4-e2b", u32("gemma4.rope.dimension_count_swa", 8), "_swa is 8, the keys have 32"),
        ("gemma4-e2b", u32("gemma4.attention.sliding_window", 0), "no gemma4.attention.sliding_w"),
        (
            "gemma4-e2b",
            array("gemma4.feed_forward_length", ValueType.INT32, [512]),
            "1 numbers of heads or widths for 6 layers",
        ),
        (
            "gemma4-31b",
            array("gemma4.attention.head_count_kv", ValueType.INT32, [2, 2, 0]),
            r"head_count_kv is \[2, 2, 0\]; positive whole numbers are needed",
        ),
        (
            "gemma4-31b",
            array("gemma4.attention.head_count_kv", ValueType.INT32, [2, 2, 4]),
            "6 attention heads are no multiple of all key-value heads",
        ),
    ],
)
def test_metadata_that_contradict_themselves(
    name: str, change: Field, words: str, folders: Path
) -> None:
    with pytest.raises(GGUFError, match=words):
        gemma4.restore({**_fields(folders / name), change.key: change}, "gemma4")


def test_a_file_without_a_cap_is_run_with_that_of_llama_cpp(folders: Path) -> None:
    fields = _fields(folders / "gemma4-31b")
    assert gemma4.restore(fields, "gemma4").logit_cap == 4
    del fields["gemma4.final_logit_softcapping"]
    assert gemma4.restore(fields, "gemma4").logit_cap == 30
    assert _fields(folders / "gemma4-saved")["gemma4.final_logit_softcapping"].value == 0


def test_a_file_without_divisors_is_no_whole_model(folders: Path) -> None:
    config = gemma4.restore(_fields(folders / "gemma4-31b"), "gemma4")
    with pytest.raises(GGUFError, match=r"rope_freqs.weight is missing; the file is no whole mod"):
        gemma4.TEXT.build(config, Weights({}))


def test_what_is_left_out_is_told(folders: Path) -> None:
    with open_source(folders / "gemma4-e2b") as source:
        (line,) = source.warnings
    assert "3 tensors (model.audio_tower.output_proj.bias, model.embed_vision." in line
    assert "left out: a gemma4 GGUF has no place for them" in line


def test_experts_hear_of_gate_and_up_once(folders: Path) -> None:
    heard: list[tuple[Site, torch.Tensor]] = []
    load_model(
        folders / "gemma4-26b-a4b", "cpu", observe=lambda site, x: heard.append((site, x.clone()))
    ).decoder.states(torch.arange(300, 320)[None])
    for layer in range(2):
        at = f"blk.{layer}."
        both = [(s, x) for s, x in heard if s.name == f"{at}ffn_gate_up_exps.weight"]
        down = [(s, x) for s, x in heard if s.name == f"{at}ffn_down_exps.weight"]
        assert {site.rows for site, _ in both} == {512}
        assert all(site.matrices == 8 for site, _ in both)
        sent = Counter({site.first // 512: len(x) for site, x in both})
        assert sent == {site.first // 256: len(x) for site, x in down}
        assert sum(sent.values()) == 20 * 3
        for name in ("ffn_gate_inp", "ffn_up", "attn_q", "attn_k"):
            assert [s.rows > 0 for s, _ in heard if s.name == f"{at}{name}.weight"] == [True]
    # Whole layers have no values of their own.
    assert [s.name for s, _ in heard if "attn_v" in s.name] == ["blk.0.attn_v.weight"]


def test_ids_are_those_of_transformers(folders: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folders / "gemma4-31b"
    library = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_fields(_fields(folder))
    for text in ("ab cd\n\n  efé 中\t1", "<|turn>user\nHi<turn|>", '<|tool_call>x<|"|>', "</s> a"):
        wanted = library.encode(text, add_special_tokens=False)
        assert ours.encode(text, parse_special=True) == [library.bos_token_id, *wanted]
        assert "<|" in text or ours.decode(wanted) == text
    # The marks of calls and thoughts are part of what is said; those of turns are not.
    said = ours.encode('<|channel>a<|"|><turn|>', add_special=False, parse_special=True)
    assert ours.decode(said) == '<|channel>a<|"|>'
    assert library.convert_tokens_to_ids("<turn|>") in ours.eog_ids


def test_another_tokenizer_is_told(folders: Path, tmp_path: Path) -> None:
    folder = build("gemma4-31b", tmp_path)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "model": {**data["model"], "byte_fallback": False}}))
    with pytest.raises(TokenizerError, match=r"no tokenizer.json with a BPE that falls back to b"):
        _fields(folder)
    path.unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer.json with a BPE that falls back to b"):
        _fields(folder)


@pytest.mark.parametrize("tokens", ["x", [], [True], [-1], {"a": 1}])
def test_suppressed_tokens_that_are_none(tokens: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": tokens}))
    with pytest.raises(CheckpointError, match=r"suppress_tokens is .*; ids are needed"):
        gemma4.suppressed(tmp_path)


def test_suppressed_tokens_are_never_said(tmp_path: Path) -> None:
    folder = build("gemma4-unified", tmp_path)
    model = load_model(folder, "cpu")
    assert model.tokenizer.suppress_ids == [15, 300]
    ids = model.tokenizer.encode("ab")
    logits = model.decoder.forward(ids, model.decoder.cache(20))
    first, second = logits.topk(2).indices.tolist()
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [first]}))
    options = GenerateOptions(sampling=SamplingOptions(temperature=0.0), num_predict=1)
    for loaded, token in ((model, first), (load_model(folder, "cpu"), second)):
        said = "".join(stream(loaded, ids, options))
        assert said == loaded.tokenizer.decode([token])


def test_an_adapter_works_beside_and_merged(folders: Path, tmp_path: Path) -> None:
    # The keys of shared layers are among what it changes, and have no part in a pass.
    base, targets = (
        folders / "gemma4-e2b",
        ("q_proj", "k_proj", "down_proj", "per_layer_projection"),
    )
    adapter = lora(base, tmp_path / "lora", targets=targets, by=0.05)
    beside = load_model(base, "cpu", adapters=Merge((Chosen(adapter),))).decoder
    gpukit.merge(base, [adapter], tmp_path / "m.gguf", "F32", device="cpu")
    merged = load_model(tmp_path / "m.gguf", "cpu").decoder
    plain, ids = load_model(base, "cpu").decoder, list(range(300, 320))
    found, wanted, without = (
        decoder.forward(ids, decoder.cache(20), every=True) for decoder in (beside, merged, plain)
    )
    # The same sums in another order.
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (found - without).abs().max() > 0.01
    gpukit.write_adapter(adapter, base, tmp_path / "a.gguf")
    alone = lora(base, tmp_path / "alone", targets=("per_layer_model_projection",))
    with pytest.raises(AdapterError, match=r"changes per_layer_model_proj.weight, which llama.cpp"):
        gpukit.write_adapter(alone, base, tmp_path / "b.gguf")
