"""A step gives the logits of the usual pass, token by token, for every architecture.

Float32 weights on the CPU, kernels in Triton's interpreter: sums in another order, each 2^-24 of
the largest term off, through a few layers, as in tests/gpukit/models/test_zoo.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoints, zoo_build
from support.zoo import ZOO

from gpukit.conversion.run import run_plan
from gpukit.generation.loading import load_model
from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder, Head
from gpukit.models.recorded import RecordedStep
from gpukit.models.stepping import parts_of
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

TOLERANCE = 1e-4
# Queries of the usual pass are rounded to float16 with keys and values, those of a step are not.
HALF = 2.0**-8
CPU = torch.device("cpu")

NAMES = (
    "plain", "llama31", "biases", "wide-heads", "qwen2", "qwen2-window", "qwen3", "mistral-v0.1",
    "gemma", "gemma2", "gemma3", "phi3-128k", "phi4-mini", "ministral3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """The interpreter computes with numpy, which warns about the garbage in masked lanes."""
    with np.errstate(all="ignore"):
        yield


def loaded(name: str, tmp_path: Path, kind: str = "F32") -> Decoder:
    """The tiny checkpoint `name` as a model of type `kind`."""
    folder = (zoo_build if name in ZOO else checkpoints).build(name, tmp_path)
    out = tmp_path / "model.gguf"
    with open_source(folder, ZOO[name].pre if name in ZOO else None) as source:
        run_plan(source, plan_quantize(source, kind), out)
    return load_model(out, "cpu").decoder


def tokens(decoder: Decoder, count: int) -> list[int]:
    random = torch.Generator().manual_seed(count)
    found: list[int] = torch.randint(decoder.config.vocab_size, (count,), generator=random).tolist()
    return found


def step_of(decoder: Decoder, cache: KVCache) -> RecordedStep:
    parts = parts_of(decoder)
    assert parts is not None
    cache.reserve(1)
    return RecordedStep(parts, cache)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def both_taken(decoder: Decoder, ids: list[int], caches: tuple[KVCache, KVCache]) -> None:
    """Take `ids` up by steps with the first cache, the usual way with the second; compare."""
    ours, theirs = caches
    step = step_of(decoder, ours)
    for token in ids:
        if ours.length == step.capacity:
            step = step_of(decoder, ours)
        step.take(token, ours.length)
        ours.advance(1)
        assert off(step.logits, decoder.forward([token], theirs)) < TOLERANCE


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_usual_pass(name: str, tmp_path: Path) -> None:
    decoder = loaded(name, tmp_path)
    ids, caches = tokens(decoder, 64), (decoder.cache(64), decoder.cache(64))
    # Over the edge of the windows of 40.
    for cache in caches:
        decoder.forward(ids[:39], cache)
    both_taken(decoder, ids[39:41], caches)
    # What steps have left is read by the usual pass.
    found, wanted = (decoder.forward(ids[41:50], cache) for cache in caches)
    assert off(found, wanted) < TOLERANCE


def test_caches_grow_and_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpukit.models.cache.FIRST_POSITIONS", 4)
    decoder = loaded("gemma3", tmp_path)
    ids, caches = tokens(decoder, 64), (decoder.cache(50), decoder.cache(50))
    for cache in caches:
        decoder.forward(ids[:1], cache)
    both_taken(decoder, ids[1:10], caches)
    for first, last in ((6, 31), (33, 48)):
        for cache in caches:
            cache.cut(first)
            decoder.forward(ids[first + 5 : last + 5], cache)
        both_taken(decoder, ids[last : last + 2], caches)
    assert caches[0].capacity == caches[0].length == 50


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_keys_and_values_may_be_float16(name: str, tmp_path: Path) -> None:
    decoder = loaded(name, tmp_path)
    ids = tokens(decoder, 60)
    caches = [KVCache(decoder.config, 64, CPU, torch.float16) for _ in range(2)]
    for cache in caches:
        decoder.forward(ids[:50], cache)
    step = step_of(decoder, caches[0])
    for token in ids[50:53]:
        step.take(token, caches[0].length)
        caches[0].advance(1)
        assert off(step.logits, decoder.forward([token], caches[1])) < HALF


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen2-tied", "Q8_0"), pytest.param("qwen3", "Q4_K_M", marks=pytest.mark.thorough)],
)
def test_products_of_prepared_rows(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Q8_0; of Q4_K, Q6_K and, where rows are no blocks of 256, Q5_0 and Q8_0."""
    # Each two rows are a program, and that is interpreted: few heads, a narrow feed-forward,
    # the last layer and some rows of the head.
    few = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
    animal = ZOO[name]
    monkeypatch.setitem(ZOO, name, replace(animal, config={**animal.config, **few}))
    decoder = loaded(name, tmp_path, kind)
    assert isinstance(decoder.head, Head)
    output = decoder.head.output
    decoder = replace(
        decoder,
        config=replace(decoder.config, vocab_size=16),
        blocks=decoder.blocks[-1:],
        ropes=decoder.ropes[-1:],
        head=replace(decoder.head, output=replace(output, weight=output.weight.part(0, 16))),
    )
    ids = tokens(decoder, 12)
    caches = decoder.cache(16), decoder.cache(16)
    for cache in caches:
        decoder.forward(ids[:11], cache)
    step = step_of(decoder, caches[0])
    for token in ids[11:]:
        step.take(token, caches[0].length)
        caches[0].advance(1)
        # x is off by 2^-16 of the largest of its group.
        assert off(step.logits, decoder.forward([token], caches[1])) < 2.0**-10


def test_the_largest_come_alone_and_ahead(tmp_path: Path) -> None:
    decoder = loaded("plain", tmp_path)
    cache, other = decoder.cache(64), decoder.cache(64)
    for each in (cache, other):
        decoder.forward(tokens(decoder, 5), each)
    step, token = step_of(decoder, cache), 7
    for turn in range(3):
        step.take(token, cache.length)
        cache.advance(1)
        logits = decoder.forward([token], other)
        if turn == 1:
            values, ids = step.largest(3)
            assert torch.equal(ids, logits.topk(3).indices)
            assert torch.allclose(values, logits.topk(3).values, rtol=1e-4)
        # The third token is another than that which the device went on with.
        found, token = step.likeliest(cache.length)
        assert token == int(logits.argmax())
        assert found == pytest.approx(float(logits.max()), rel=1e-4)
        token = token if turn == 0 else 9
    assert step.largest(10**9)[0].shape == logits.shape


def test_what_is_not_known_has_no_step(tmp_path: Path) -> None:
    assert parts_of(loaded("mixtral-12", tmp_path)) is None
    assert parts_of(loaded("glm4-moe", tmp_path)) is None
    assert parts_of(loaded("gemma4-31b", tmp_path)) is None
    assert parts_of(loaded("granite", tmp_path)) is None
    assert parts_of(loaded("olmo2", tmp_path)) is None
    decoder = loaded("plain", tmp_path)
    assert parts_of(decoder) is not None
    assert parts_of(replace(decoder, head=lambda x: x)) is None
    assert parts_of(replace(decoder, embed=lambda x: x)) is None
    assert (
        parts_of(replace(decoder, ropes=decoder.ropes[:1], blocks=[lambda x, turns, cache: x]))
        is None
    )
    assert parts_of(replace(decoder, places=[CPU, torch.device("meta")])) is None
    out = tmp_path / "model.gguf"
    observed = load_model(out, "cpu", observe=lambda site, x: None).decoder
    assert parts_of(observed) is None
