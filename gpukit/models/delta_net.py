"""A layer of a gated delta network: what takes the place of attention in hybrid models."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

import gpukit_kernels as kernels
from gpukit.models.cache import KVCache, Unrelated
from gpukit.models.config import ModelConfig
from gpukit.models.delta_rule import causal_conv, delta_rule
from gpukit.models.layers import RMSNorm
from gpukit.models.weights import Linear, Weights

# What is added to the square of a length before it divides a query or key, in transformers.
LENGTH_EPS = 1e-6


@dataclass(frozen=True)
class DeltaNet:
    """A gated delta network over heads of `head_dim` values; `layer` is its place in the cache.

    mixed   queries and keys of `key_heads`, then values of all heads, before the convolution
    gate    of what comes out of the norm over each head
    share   how much of each position is written, before a sigmoid
    decay   the decay's logarithm, before `bias` is added and softplus times `rate` taken of it
    taps    float32 `[channels of mixed, n]` of the causal convolution
    o       of all heads to the width of the model

    Value head h has the queries and keys of head h % key_heads.
    """

    layer: int
    mixed: Linear
    gate: Linear
    share: Linear
    decay: Linear
    taps: Tensor
    bias: Tensor
    rate: Tensor
    norm: RMSNorm
    o: Linear
    key_heads: int
    head_dim: int

    @staticmethod
    def of(layer: int, config: ModelConfig, weights: Weights) -> "DeltaNet":
        """That of a layer, by its names in a GGUF; `GGUFError` for weights that are missing or of
        another shape."""
        sizes, at, embd = config.delta, f"blk.{layer}", config.n_embd
        assert sizes is not None
        heads = sizes.value_heads
        taps = weights.matrix(f"{at}.ssm_conv1d.weight", sizes.channels, sizes.taps)
        return DeltaNet(
            layer=layer,
            mixed=weights.linear(f"{at}.attn_qkv", sizes.channels, embd),
            gate=weights.linear(f"{at}.attn_gate", sizes.values, embd),
            share=weights.linear(f"{at}.ssm_beta", heads, embd),
            decay=weights.linear(f"{at}.ssm_alpha", heads, embd),
            taps=taps.rows(torch.arange(sizes.channels, device=taps.blocks.device)),
            bias=weights.vector(f"{at}.ssm_dt.bias", heads),
            rate=weights.vector(f"{at}.ssm_a", heads),
            norm=RMSNorm(weights.vector(f"{at}.ssm_norm.weight", sizes.head_dim), config.rms_eps),
            o=weights.linear(f"{at}.ssm_out", embd, sizes.values),
            key_heads=sizes.key_heads,
            head_dim=sizes.head_dim,
        )

    def __call__(self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated) -> Tensor:  # noqa: ARG002
        before, tail = cache.state(self.layer) or (None, None)
        mixed, tail = causal_conv(cache.sequences(self.mixed(x)), self.taps, tail)
        keys = self.key_heads * self.head_dim
        widths = [keys, keys, mixed.shape[-1] - 2 * keys]
        q, k, v = torch.split(silu(mixed), widths, -1)
        q, k, v = (self._heads(part) for part in (q, k, v))
        log_decay = self._each(softplus(self.decay(x) + self.bias) * self.rate, cache)
        share = self._each(torch.sigmoid(self.share(x)), cache)
        if before is None:
            before = v.new_zeros(*v.shape[:3], self.head_dim, self.head_dim)
        q = _unit(q) * self.head_dim**-0.5
        found, state = delta_rule(q, _unit(k), v, log_decay, share, before)
        cache.put(self.layer, (state, tail))
        # [sequences, groups, key heads, length, d] -> [count, heads, d]
        found = found.permute(0, 3, 1, 2, 4).reshape(len(x), -1, self.head_dim)
        gate = self.gate(x).view(found.shape)
        return self.o(kernels.gated(gate, self.norm(found), "silu").flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        """`[sequences, groups, key heads, length, d]` of `[sequences, length, width]`."""
        heads = x.reshape(*x.shape[:2], -1, self.key_heads, self.head_dim)
        return heads.permute(0, 2, 3, 1, 4)

    def _each(self, x: Tensor, cache: KVCache | Unrelated) -> Tensor:
        """`[sequences, groups, key heads, length]` of a number a head, `[count, heads]`."""
        x = cache.sequences(x)
        return x.view(*x.shape[:2], -1, self.key_heads).permute(0, 2, 3, 1)


def _unit(x: Tensor) -> Tensor:
    """`x` over its length along the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)
