"""The forward pass against transformers on the same weights, with and without the cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import build
from support.llama_cpp_server import probabilities

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError
from gpukit.generation.loading import load_model
from gpukit.models.decoder import PREFILL, Decoder
from gpukit.models.layers import Rope
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

VARIANTS = (
    "plain", "tied", "one-kv-head", "all-heads", "llama31", "llama32-form4", "linear",
    "linear-form4", "wide-heads", "narrow-heads", "biases", "f32",
)  # fmt: skip
# float32 sums of up to 608 products in another order: some 2^-24 * sqrt(608) of the largest term
# each, through two layers. Measured: below 2e-6.
TOLERANCE = 1e-4


def _lively(folder: Path) -> None:
    """Norms near 1 and larger queries and keys: attention that looks at single positions."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, values in tensors.items():
        if "norm" in name:
            values.mul_(5).add_(1)
        elif "q_proj" in name or "k_proj" in name:
            values.mul_(4)
    save_file(tensors, path, {"format": "pt"})


def _ours(folder: Path) -> Decoder:
    """The checkpoint as a float32 GGUF, loaded."""
    out = folder / "f32.gguf"
    with open_source(folder) as source:
        run_plan(source, plan_quantize(source, "F32"), out)
    return load_model(out, "cpu").decoder


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference at any position over the largest logit there."""
    assert found.shape == wanted.shape
    return float(((found - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = build(name, tmp_path)
    _lively(folder)
    ids = torch.randint(2048, (300,), generator=torch.Generator().manual_seed(1))
    peer = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        wanted = peer(ids[None]).logits[0]
    decoder = _ours(folder)
    tokens = ids.tolist()
    whole = decoder.forward(tokens, decoder.cache(300), every=True)
    assert _error(whole, wanted) < TOLERANCE

    # In uneven pieces; with the last one the cache outgrows its first size.
    cache, at, parts = decoder.cache(300), 0, []
    for count in (1, 1, 7, 240, 1, 50):
        parts.append(decoder.forward(tokens[at : at + count], cache, every=True))
        at += count
    assert cache.length == 300
    assert _error(torch.cat(parts), wanted) < TOLERANCE
    # The last position alone is the last row.
    assert _error(decoder.forward(tokens, decoder.cache(300)), wanted[-1]) < TOLERANCE
    # Beside other sequences, of which it sees nothing.
    three = torch.stack((ids.flip(0), ids, ids.roll(7)))
    together = decoder.head(decoder.states(three))
    assert _error(together[1], wanted) < TOLERANCE
    assert (
        _error(together[2], decoder.forward(three[2].tolist(), decoder.cache(300), every=True))
        < TOLERANCE
    )


@pytest.mark.sampled(3)
@pytest.mark.peer
@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_gives_the_same_probabilities(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path)
    _lively(folder)
    decoder, tokens = _ours(folder), list(range(300, 500))
    ids, wanted = probabilities(folder / "f32.gguf", tokens)
    found = decoder.forward(tokens, decoder.cache(256)).log_softmax(-1)[ids]
    # The same sums in another order.
    assert (found - wanted).abs().max() < 1e-4


def test_the_comparison_sees_a_wrong_rotation(tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    _lively(folder)
    decoder = _ours(folder)
    tokens = list(range(100, 150))
    right = decoder.forward(tokens, decoder.cache(50), every=True)
    off = replace(decoder, ropes=[Rope(32, 9000.0, decoder.device)] * 2)
    assert _error(off.forward(tokens, off.cache(50), every=True), right) > 10 * TOLERANCE


@pytest.mark.parametrize("kind", ["default", "linear", "llama3"])
def test_angles_are_those_of_transformers_at_long_positions(kind: str) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from gpukit.models import llama

    scaling = {
        "default": {},
        "linear": {"factor": 4.0},
        "llama3": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }[kind]  # fmt: skip
    config = {
        "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 1, "vocab_size": 32,
        "intermediate_size": 64, "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": kind, "rope_theta": 500000.0, **scaling},
    }  # fmt: skip
    positions = torch.tensor([0, 1, 2047, 8191, 65537, 131071])
    peer = LlamaRotaryEmbedding(LlamaConfig(**config))
    cosines, sines = peer(torch.zeros(1), positions[None])

    ours = llama.read(config)
    divisors = llama.rope_divisors(ours) if kind == "llama3" else None
    factor = ours.rope_factor if kind == "linear" else 1.0
    rope = Rope(128, ours.rope_theta, torch.device("cpu"), factor=factor, divisors=divisors)
    turns = torch.cat([rope.turns(int(p), 1, 131072) for p in positions]).squeeze(1)
    # The tolerance that Rope's docstring derives; without divisors the angles are the same.
    within = 1e-4 if kind == "llama3" else 1e-6
    assert (turns.real - cosines[0, :, :64]).abs().max() < within
    assert (turns.imag - sines[0, :, :64]).abs().max() < within


def test_a_long_prompt_goes_through_in_pieces(tmp_path: Path) -> None:
    decoder = _ours(build("narrow-heads", tmp_path))
    count = PREFILL + 3
    ids = torch.randint(2048, (count,), generator=torch.Generator().manual_seed(2)).tolist()
    at_once = decoder.forward(ids, decoder.cache(count), every=True)
    cache = decoder.cache(2 * count)
    one_by_one = [decoder.forward([token], cache) for token in ids[:3]]
    one_by_one.append(decoder.forward(ids[3:], cache))
    assert cache.length == count
    assert _error(torch.stack(one_by_one), at_once[[0, 1, 2, -1]]) < TOLERANCE


def test_what_does_not_fit_into_the_cache_changes_nothing(tmp_path: Path) -> None:
    decoder = _ours(build("tied", tmp_path))
    cache = decoder.cache(4)
    first = decoder.forward([1, 2, 3], cache)
    with pytest.raises(ArgumentError, match=r"5 tokens do not fit .* of 4; .*--num-ctx can be"):
        decoder.forward([4, 5], cache)
    assert cache.length == 3
    assert torch.equal(decoder.forward([1, 2, 3], decoder.cache(3)), first)
    decoder.forward([4], cache)
    with pytest.raises(ArgumentError, match="no tokens"):
        decoder.forward([], cache)
    with pytest.raises(ArgumentError, match="no tokens"):
        decoder.states(torch.empty(0, 4, dtype=torch.int64))
