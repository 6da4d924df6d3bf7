"""Gated delta networks: chunks against the plain recurrence, and states that a cache keeps."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.zoo_build import build
from torch import Tensor
from torch.nn.functional import conv1d, normalize

from gpukit.conversion.run import run_plan
from gpukit.generation.loading import load_model
from gpukit.generation.memory import Memory
from gpukit.models import delta_rule
from gpukit.models.decoder import Decoder
from gpukit.models.delta_rules import minus_exp
from gpukit.models.states import NOTES
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

# Sums of some 64 products and a triangular system of 64 rows in float32: 2^-24 * 64 of the largest
# term. Measured: below 2e-6.
NEAR = 1e-5


def _inputs(length: int, decay: float) -> list[Tensor]:
    """Queries, keys, values, log decays, shares and a state, as a layer makes them: 2 sequences, 3
    value heads for each of 2 key heads."""
    source = torch.Generator().manual_seed(length)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    q, k = (normalize(random(2, 1, 2, length, 16), dim=-1) for _ in range(2))
    shares = torch.sigmoid(random(2, 3, 2, length))
    decays = -decay * random(2, 3, 2, length).abs()
    return [q, k, random(2, 3, 2, length, 16), decays, shares, random(2, 3, 2, 16, 16)]


@pytest.mark.parametrize("decay", [0.0, 0.1, 60.0])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_chunks_are_the_recurrence(length: int, decay: float) -> None:
    inputs = _inputs(length, decay)
    wanted, behind = delta_rule.delta_rule_by_steps(*inputs)
    found, state = delta_rule.delta_rule(*inputs)
    torch.testing.assert_close(found, wanted, atol=NEAR, rtol=NEAR)
    torch.testing.assert_close(state, behind, atol=NEAR, rtol=NEAR)


def test_the_recurrence_is_the_rule_as_it_is_written() -> None:
    q, k, v, decays, shares, state = (x[0, 0, 0].double() for x in _inputs(3, 1.0))
    found, _ = delta_rule.delta_rule_by_steps(q, k, v, decays, shares, state)
    for at in range(3):
        # The state forgets what stands at the key, and takes the value: S (I - b k k^T) + b v k^T.
        state = decays[at].exp() * state
        old = torch.outer(k[at], k[at] @ state)
        state = state - shares[at] * old + shares[at] * torch.outer(k[at], v[at])
        torch.testing.assert_close(found[at], q[at] @ state)


@pytest.mark.parametrize("counts", [[9], [1] * 9, [2, 3, 4]])
def test_a_convolution_in_pieces_is_one(counts: list[int]) -> None:
    x, taps = torch.randn(2, 9, 6), torch.randn(6, 4)
    padded = torch.cat((torch.zeros(2, 3, 6), x), 1).mT
    wanted = conv1d(padded, taps[:, None], groups=6).mT
    before, found = None, []
    for part in x.split(counts, 1):
        out, before = delta_rule.causal_conv(part, taps, before)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), wanted)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    root = tmp_path_factory.mktemp("hybrid")
    with open_source(build("qwen3.5-yarn", root), "qwen35") as source:
        run_plan(source, plan_quantize(source, "f32"), root / "x.gguf")
    return load_model(root / "x.gguf", "cpu").decoder


IDS = torch.randint(2048, (150,), generator=torch.Generator().manual_seed(3)).tolist()


def _near(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-4 * wanted.abs().max())


def test_sequences_together_see_themselves_alone(decoder: Decoder) -> None:
    three = torch.tensor([IDS, IDS[::-1], IDS[7:] + IDS[:7]])
    together = decoder.head(decoder.states(three))
    for ids, found in zip(three.tolist(), together, strict=True):
        assert _near(found, decoder.forward(ids, decoder.cache(150), every=True))


def test_a_prompt_is_no_step_a_token(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = decoder.cache(151)
    with monkeypatch.context() as context:
        context.delattr(delta_rule, "delta_rule_by_steps")
        decoder.forward(IDS, cache)
    decoder.forward(IDS[:1], cache)


def test_a_cache_goes_back_to_what_was_noted(decoder: Decoder) -> None:
    cache = decoder.cache(150)
    for first in range(0, 150, 30):
        decoder.forward(IDS[first : first + 30], cache)
        cache.note()
    cache.cut(150)
    assert cache.length == 150
    cache.cut(119)
    assert cache.length == 90
    assert _near(decoder.forward(IDS[90:], cache), decoder.forward(IDS, decoder.cache(150)))
    # 90 is still noted, what came later is not, and of more notes the oldest are gone.
    assert NOTES == 3
    cache.cut(149)
    assert cache.length == 90
    cache.cut(89)
    assert cache.length == 0
    assert _near(decoder.forward(IDS, cache), decoder.forward(IDS, decoder.cache(150)))


def test_a_pass_that_is_broken_off_changes_no_state(decoder: Decoder) -> None:
    def broken(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    blocks: list[Callable[..., Tensor]] = [*decoder.blocks[:-1], broken]
    cache = decoder.cache(150)
    decoder.forward(IDS[:70], cache)
    with pytest.raises(KeyboardInterrupt):
        replace(decoder, blocks=blocks).forward(IDS[:80], cache)
    assert cache.length == 70
    assert _near(decoder.forward(IDS[70:], cache), decoder.forward(IDS, decoder.cache(150)))


def test_what_two_prompts_have_is_remembered_as_far_as_noted(decoder: Decoder) -> None:
    from gpukit.generation.drawing import TEMPLATE_END, Drawing
    from gpukit.generation.sampling import Sampler, SamplingOptions
    from gpukit.generation.steps import Steps

    memory, sampler = Memory(), Sampler(SamplingOptions(temperature=0))

    def answer(ids: list[int], memory: Memory) -> tuple[int, list[int]]:
        cache = memory.begin(decoder, 300, ids)
        remembered, seen = cache.length, list(ids)
        drawing = Drawing(decoder, Steps(decoder), cache, sampler)
        drawing.begin(seen[remembered:])
        for _ in range(5):
            seen.append(drawing.pick(seen))
            drawing.take(seen[-1])
        memory.keep(seen)
        return remembered, seen

    remembered, seen = answer(IDS[:100], memory)
    assert remembered == 0
    # One that goes on behind the answer, one that leaves it out, and one that leaves out the end
    # of the prompt, too, as where a template takes thoughts away.
    for ids, known in (
        ([*seen, *IDS[100:110]], 105),
        (IDS[:110], 100),
        ([*IDS[:97], *IDS[110:140]], 100 - TEMPLATE_END),
    ):
        remembered, found = answer(ids, memory)
        assert remembered == known
        assert found == answer(ids, Memory())[1]


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3.5-moe"])
def test_metadata_become_the_configuration_that_they_came_from(name: str, tmp_path: Path) -> None:
    from gpukit.models.registry import architecture_of

    with open_source(build(name, tmp_path), "qwen35") as source:
        metadata = {field.key: field for field in source.fields}
    restored = architecture_of(metadata["general.architecture"].value, "x").restore(metadata)
    assert restored.delta is not None
    assert (restored.n_layer, restored.n_nextn, restored.n_rot) == (len(restored.recurrent), 1, 16)
    assert (restored.delta.key_heads, restored.delta.value_heads) == (2, 4)
    assert restored.attention_every == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rates_are_rounded_correctly(dtype: torch.dtype) -> None:
    logs = torch.linspace(-8, 4, 999).to(dtype)
    found = minus_exp(logs)
    assert torch.equal(found, torch.from_numpy(minus_exp(logs.numpy())))
    exact = [-math.exp(value) for value in logs.tolist()]
    assert torch.equal(found, torch.tensor(exact, dtype=torch.float64).float().to(dtype))
