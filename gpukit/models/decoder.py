"""A decoder: token ids through embedding, blocks and head to logits.

An architecture's file puts one together from the pieces in `layers.py`, or from its own: whatever
takes and gives what they take and give.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError
from gpukit.models.cache import KVCache, Unrelated, kept_dtype
from gpukit.models.config import ModelConfig
from gpukit.models.layers import Rope
from gpukit.models.weights import Linear

# Tokens of a prompt that pass through the layers together: decoding a weight pays for 512 products,
# and an intermediate of 16 384 values a token stays at 32 MiB.
PREFILL = 512

# (x `[count, n_embd]`, turns of `Rope`, cache) -> x
BlockFunction = Callable[[Tensor, Tensor, KVCache | Unrelated], Tensor]


@dataclass(frozen=True)
class Block:
    """x + attention(norm(x)), then x + feed_forward(norm(x)); what is added may go through a norm of
    its own."""

    attention_norm: Callable[[Tensor], Tensor]
    attention: BlockFunction
    feed_forward_norm: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]
    after_attention: Callable[[Tensor], Tensor] | None = None
    after_feed_forward: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated) -> Tensor:
        found = self.attention(self.attention_norm(x), turns, cache)
        x = x + (found if self.after_attention is None else self.after_attention(found))
        found = self.feed_forward(self.feed_forward_norm(x))
        return x + (found if self.after_feed_forward is None else self.after_feed_forward(found))


@dataclass(frozen=True)
class Head:
    """Logits of a state: output(norm(x)), a logit l as cap * tanh(l / cap) where there is a cap."""

    norm: Callable[[Tensor], Tensor]
    output: Linear
    cap: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.output(self.norm(x))
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


@dataclass(frozen=True)
class Decoder:
    """A model that can be run; every tensor in it is on `device`.

    embed   int64 ids `[count]` -> float32 `[count, n_embd]`
    ropes   one a block, often the same
    head    float32 `[..., n_embd]` -> logits `[..., vocab_size]`, the last norm included
    """

    config: ModelConfig
    device: torch.device
    embed: Callable[[Tensor], Tensor]
    ropes: Sequence[Rope]
    blocks: Sequence[BlockFunction]
    head: Callable[[Tensor], Tensor]

    def cache(self, n_ctx: int) -> KVCache:
        """An empty cache for `n_ctx` positions."""
        return KVCache(self.config, n_ctx, self.device)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: KVCache, *, every: bool = False) -> Tensor:
        """float32 logits behind the last of `ids` `[vocab]`, or behind every one `[count, vocab]`.

        The cache holds the positions before `ids` and takes them up. `ArgumentError` where they do
        not fit into it, or there are none.
        """
        if not ids:
            raise ArgumentError("no tokens; at least one is needed")
        cache.need(len(ids))
        # For one token torch's own part is too short to be shared: products have their threads.
        with kernels.alone() if len(ids) == 1 else nullcontext():
            return self._forward(ids, cache, every)

    def _forward(self, ids: Sequence[int], cache: KVCache, every: bool) -> Tensor:
        if every:
            return torch.cat([self.head(x) for x in self._states(ids, cache)])
        for last in self._states(ids, cache):
            state = last[-1]
        return self.head(state)

    def _states(self, ids: Sequence[int], cache: KVCache) -> Iterator[Tensor]:
        """What comes out of the blocks, `PREFILL` of `ids` at a time."""
        for chunk in torch.split(torch.tensor(ids, device=self.device), PREFILL):
            cache.reserve(len(chunk))
            x = self.embed(chunk)
            turns = {
                rope: rope.turns(cache.length, len(chunk), cache.n_ctx) for rope in set(self.ropes)
            }
            for block, rope in zip(self.blocks, self.ropes, strict=True):
                x = block(x, turns[rope], cache)
            cache.advance(len(chunk))
            yield x

    @torch.inference_mode()
    def states(self, sequences: Tensor) -> Tensor:
        """float32 `[count, length, n_embd]`, of which `head` makes the logits behind each token of
        int64 `sequences` `[count, length]`; each begins at position 0 and sees itself alone.

        `ArgumentError` where there are none.
        """
        count, length = sequences.shape
        if not sequences.numel():
            raise ArgumentError("no tokens; at least one is needed")
        x = self.embed(sequences.flatten().to(self.device))
        together = Unrelated(length, kept_dtype(self.device))
        turns = {
            rope: rope.turns(0, length, length).repeat(count, 1, 1) for rope in set(self.ropes)
        }
        for block, rope in zip(self.blocks, self.ropes, strict=True):
            x = block(x, turns[rope], together)
        return x.view(count, length, -1)
