"""Keys and values in float16, as they are off the CPU; here on it.

Each of them is off by 2^-11 of itself, and scores and sums are by as much: the logits, a few sums
behind it, by some times that.
"""

import pytest
import torch
from support.zoo import ZOO
from support.zoo_build import build

from gpukit.generation.loading import load_model
from gpukit.models import cache as caches, decoder as decoders
from gpukit.models.decoder import Decoder

NEAR = 2.0**-8
COUNT = 90


@pytest.fixture(scope="module", params=["gemma2", "qwen3", "phi3-4k", "ministral3", "gemma4-e2b"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = build(request.param, tmp_path_factory.mktemp("half"))
    return load_model(folder, "cpu", ZOO[request.param].pre).decoder


def test_half_is_near_in_pieces_and_together(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(2048, (2, COUNT), generator=torch.Generator().manual_seed(3))
    tokens = ids[0].tolist()
    full = decoder.cache(COUNT)
    wanted = decoder.forward(tokens, full, every=True)
    assert full.dtype is torch.float32

    for module in (caches, decoders):
        monkeypatch.setattr(module, "kept_dtype", lambda device: torch.float16)
    monkeypatch.setattr(caches, "FIRST_POSITIONS", 16)
    cache, at, parts = decoder.cache(COUNT + 9), 0, []
    for count in (1, 50, 1, 38):
        parts.append(decoder.forward(tokens[at : at + count], cache, every=True))
        at += count
    assert (cache.dtype, cache.capacity) == (torch.float16, COUNT + 9)
    assert _error(torch.cat(parts), wanted) < NEAR
    together = decoder.head(decoder.states(ids))
    assert _error(together[0], wanted) < NEAR
    alone = decoder.head(decoder.states(ids[1:]))
    assert torch.allclose(together[1], alone[0], rtol=0, atol=1e-4)


def test_a_cache_grows_for_all_layers_at_once(decoder: Decoder) -> None:
    cache = caches.KVCache(decoder.config, 1000, decoder.device, torch.float16)
    assert cache.capacity == 256
    first = decoder.config.at(0)
    keys = torch.full((250, first.n_head_kv, first.head_dim), 2.0)
    cache.taken(0, keys, keys, keys)
    cache.advance(250)
    for count, capacity in ((6, 256), (7, 512), (750, 1000)):
        cache.need(count)
        cache.reserve(count)
        assert cache.capacity == capacity
        for layer in range(decoder.config.n_layer):
            assert all(x.shape[1] == capacity for x in cache.layer(layer))
    held, _ = cache.layer(0)
    assert bool((held[:, :250] == 2).all())
    assert not bool(held[:, 250:].any())


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference at any position over the largest logit there."""
    return float(((found - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())
