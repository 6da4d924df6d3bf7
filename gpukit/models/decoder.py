"""The decoder that Llama-like architectures share: norm, attention, norm, gated feed-forward."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from gpukit.errors import GGUFError
from gpukit.models.base import ModelConfig
from gpukit.models.cache import KVCache
from gpukit.models.layers import Linear, Rope, Weight, attend, rms_norm, rotate

# Tokens of a prompt that pass through the layers together; bounds the memory of attention scores.
PREFILL = 512


@dataclass(frozen=True)
class Layer:
    """The weights of one layer."""

    attn_norm: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    ffn_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


class Decoder:
    """A model that can be run; `weights` by GGUF name, all on one device.

    `GGUFError` for a tensor that is missing or of another shape than the configuration asks for.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight]) -> None:
        self.config = config
        pick = _Picker(weights)
        c, q, kv = config, config.n_head * config.head_dim, config.n_head_kv * config.head_dim
        self.embedding = pick.matrix("token_embd.weight", c.vocab_size, c.n_embd)
        self.device = self.embedding.blocks.device
        self.layers = [
            Layer(
                attn_norm=pick.vector(f"blk.{i}.attn_norm.weight", c.n_embd),
                q=pick.linear(f"blk.{i}.attn_q", q, c.n_embd),
                k=pick.linear(f"blk.{i}.attn_k", kv, c.n_embd),
                v=pick.linear(f"blk.{i}.attn_v", kv, c.n_embd),
                o=pick.linear(f"blk.{i}.attn_output", c.n_embd, q),
                ffn_norm=pick.vector(f"blk.{i}.ffn_norm.weight", c.n_embd),
                gate=pick.linear(f"blk.{i}.ffn_gate", c.n_ff, c.n_embd),
                up=pick.linear(f"blk.{i}.ffn_up", c.n_ff, c.n_embd),
                down=pick.linear(f"blk.{i}.ffn_down", c.n_embd, c.n_ff),
            )
            for i in range(c.n_layer)
        ]
        self.norm = pick.vector("output_norm.weight", c.n_embd)
        if "output.weight" in weights:
            self.head = pick.linear("output", c.vocab_size, c.n_embd)
        else:  # tied
            self.head = Linear(self.embedding)
        divisors = None
        if "rope_freqs.weight" in weights:
            divisors = pick.vector("rope_freqs.weight", c.head_dim // 2)
        self._rope = Rope(config, divisors, self.device)

    def cache(self, n_ctx: int) -> KVCache:
        """An empty cache for `n_ctx` positions."""
        return KVCache(self.config, n_ctx, self.device)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: KVCache, *, every: bool = False) -> Tensor:
        """float32 logits behind the last of `ids` `[vocab]`, or behind every one `[count, vocab]`.

        `ids` is int64 `[count]`; the cache holds the positions before them and takes them up.
        """
        cache.need(len(ids))
        parts = []
        for at in range(0, len(ids), PREFILL):
            x = self._layers(ids[at : at + PREFILL], cache)
            if every:
                parts.append(self._logits(x))
        return torch.cat(parts) if every else self._logits(x[-1])

    def _layers(self, ids: Tensor, cache: KVCache) -> Tensor:
        x = self.embedding.rows(ids)
        cosines, sines = self._rope.angles(cache.length, len(ids))
        heads = (len(ids), -1, self.config.head_dim)
        eps = self.config.rms_eps
        for number, layer in enumerate(self.layers):
            h = rms_norm(x, layer.attn_norm, eps)
            q = rotate(layer.q(h).view(heads), cosines, sines)
            k = rotate(layer.k(h).view(heads), cosines, sines)
            keys, values = cache.extend(number, k, layer.v(h).view(heads))
            x = x + layer.o(attend(q, keys, values, cache.length))
            h = rms_norm(x, layer.ffn_norm, eps)
            x = x + layer.down(silu(layer.gate(h)) * layer.up(h))
        cache.advance(len(ids))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(rms_norm(x, self.norm, self.config.rms_eps))


class _Picker:
    """Takes weights by name and checks their shapes."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights

    def matrix(self, name: str, rows: int, width: int) -> Weight:
        weight = self._weights.get(name)
        if weight is None:
            raise GGUFError(f"{name} is missing; the file is no whole model")
        found = (weight.blocks.shape[0], weight.width)
        if found != (rows, width):
            raise GGUFError(f"{name} has {found[0]} rows of {found[1]}, needed: {rows} of {width}")
        return weight

    def vector(self, name: str, width: int) -> Tensor:
        return self.matrix(name, 1, width).rows(torch.tensor([0]))[0]

    def linear(self, name: str, rows: int, width: int) -> Linear:
        bias = self.vector(f"{name}.bias", rows) if f"{name}.bias" in self._weights else None
        return Linear(self.matrix(f"{name}.weight", rows, width), bias)
