"""A decoder: token ids through embedding, blocks and head to logits.

An architecture's file puts one together from the pieces in `layers.py`, or from its own: whatever
takes and gives what they take and give.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError, GpukitError
from gpukit.models.cache import KVCache, Unrelated, kept_dtype
from gpukit.models.config import ModelConfig
from gpukit.models.layers import Rope
from gpukit.models.weights import Linear

# Tokens of a prompt that pass through the layers together: decoding a weight pays for 512 products,
# and an intermediate of 16 384 values a token stays at 32 MiB.
PREFILL = 512
# Off the CPU, where there is memory for more: a weight is decoded once for as many.
LARGE_PREFILL = 4096
# The part of free memory that intermediates may take, and how many there are of the width of the
# model and of its feed forward at a time: float32, rounded to 16 bits, and what comes out.
SHARE, WIDE, WIDEST = 4, 12, 4

# (x `[count, n_embd]`, turns of `Rope`, cache, and its part of what `Decoder.beside` gives) -> x
BlockFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Block:
    """x + attention(norm(x)), then x + feed_forward(norm(x)); each sum's second part may go through
    a norm of its own, and is multiplied by `scale`."""

    attention_norm: Callable[[Tensor], Tensor]
    attention: BlockFunction
    feed_forward_norm: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]
    after_attention: Callable[[Tensor], Tensor] | None = None
    after_feed_forward: Callable[[Tensor], Tensor] | None = None
    scale: float = 1.0

    def __call__(self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated) -> Tensor:
        """`x`, which changes: a sum of its own each time would be memory, and holes in it."""
        self._add(x, self.attention(self.attention_norm(x), turns, cache), self.after_attention)
        return self._add(x, self.feed_forward(self.feed_forward_norm(x)), self.after_feed_forward)

    def _add(self, x: Tensor, found: Tensor, after: Callable[[Tensor], Tensor] | None) -> Tensor:
        found = found if after is None else after(found)
        return x.add_(found if self.scale == 1 else found * self.scale)


@dataclass(frozen=True)
class Head:
    """Logits of a state: output(norm(x)) / divisor, a logit l as cap * tanh(l / cap) where there is
    a cap."""

    norm: Callable[[Tensor], Tensor]
    output: Linear
    cap: float = 0.0
    divisor: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.output(self.norm(x))
        logits = logits if self.divisor == 1 else logits / self.divisor
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


@dataclass(frozen=True)
class Decoder:
    """A model that can be run; every tensor in it is on `device`.

    embed   int64 ids `[count]` -> float32 `[count, n_embd]`
    ropes   one a block, often the same
    head    float32 `[..., n_embd]` -> logits `[..., vocab_size]`, the last norm included
    beside  where blocks have more than x: ids and what `embed` made of them -> `[blocks, …]`
    places  the device of each block, where they are not all on `device`; logits are on the last
    """

    config: ModelConfig
    device: torch.device
    embed: Callable[[Tensor], Tensor]
    ropes: Sequence[Rope]
    blocks: Sequence[BlockFunction]
    head: Callable[[Tensor], Tensor]
    places: Sequence[torch.device] = ()
    beside: Callable[[Tensor, Tensor], Tensor] | None = None

    def cache(self, n_ctx: int) -> KVCache:
        """An empty cache for `n_ctx` positions."""
        return KVCache(self.config, n_ctx, self.places or self.device)

    def together(self, least: int, most: int) -> int:
        """Tokens that should pass through the layers at a time: `least` on the CPU, elsewhere
        `most`, halved until their intermediates fit into a quarter of the free memory."""
        if self.device.type == "cpu":
            return least
        widest = max(self.config.ffs, default=self.config.n_ff)
        each = 4 * (WIDE * self.config.n_embd + WIDEST * widest)
        free = kernels.free_bytes(self.device) // SHARE
        while most > least and most * each > free:
            most //= 2
        return most

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: KVCache, *, every: bool = False) -> Tensor:
        """float32 logits behind the last of `ids` `[vocab]`, or behind every one `[count, vocab]`.

        The cache holds the positions before `ids` and takes them up. `ArgumentError` where they do
        not fit into it, or there are none.
        """
        if not ids:
            raise ArgumentError("no tokens; at least one is needed")
        cache.need(len(ids))
        with self._room(len(ids)):
            return self._alone(ids, cache, every)

    def _alone(self, ids: Sequence[int], cache: KVCache, every: bool) -> Tensor:
        # For one token torch's own part is too short to be shared: products have their threads.
        with kernels.alone() if len(ids) == 1 else nullcontext():
            return self._forward(ids, cache, every)

    @contextmanager
    def _room(self, count: int) -> Iterator[None]:
        """Say in one line that a device ran out of memory in the block, with `count` tokens."""
        try:
            yield
        except torch.OutOfMemoryError:
            places = dict.fromkeys((self.device, *self.places))
            free = ", ".join(
                f"{p} has {kernels.free_bytes(p) / 2**30:.1f} GiB free" for p in places
            )
            raise GpukitError(
                f"out of memory with {count} tokens at a time; {free}; make --num-ctx smaller, end "
                "what else runs there, or quantise the model to a smaller type"
            ) from None

    def _forward(self, ids: Sequence[int], cache: KVCache, every: bool) -> Tensor:
        if every:
            return torch.cat([self.head(x) for x in self._states(ids, cache)])
        for last in self._states(ids, cache):
            state = last[-1]
        return self.head(state)

    def _states(self, ids: Sequence[int], cache: KVCache) -> Iterator[Tensor]:
        """What comes out of the blocks, some of `ids` at a time."""
        size = PREFILL if len(ids) <= PREFILL else self.together(PREFILL, LARGE_PREFILL)
        for chunk in torch.split(torch.tensor(ids, device=self.device), size):
            cache.reserve(len(chunk))
            turns = {
                rope: rope.turns(cache.length, len(chunk), cache.n_ctx) for rope in set(self.ropes)
            }
            x = self._through(chunk, turns, cache)
            cache.advance(len(chunk))
            yield x

    @torch.inference_mode()
    def states(self, sequences: Tensor) -> Tensor:
        """float32 `[count, length, n_embd]`, of which `head` makes the logits behind each token of
        int64 `sequences` `[count, length]`; each begins at position 0 and sees itself alone.

        `ArgumentError` where there are none.
        """
        with self._room(sequences.numel()):
            return self._together(sequences)

    def _together(self, sequences: Tensor) -> Tensor:
        count, length = sequences.shape
        if not sequences.numel():
            raise ArgumentError("no tokens; at least one is needed")
        lent = {of for layer, of in enumerate(self.config.kv_layers) if of != layer}
        together = Unrelated(length, kept_dtype(self.device), lent)
        turns = {
            rope: rope.turns(0, length, length).repeat(count, 1, 1) for rope in set(self.ropes)
        }
        x = self._through(sequences.flatten().to(self.device), turns, together)
        return x.view(count, length, -1)

    def _through(
        self, ids: Tensor, turns: Mapping[Rope, Tensor], cache: KVCache | Unrelated
    ) -> Tensor:
        """What the last block makes of `ids`."""
        x = self.embed(ids)
        beside = None if self.beside is None else self.beside(ids, x)
        for number, (block, rope) in enumerate(zip(self.blocks, self.ropes, strict=True)):
            x = block(x, turns[rope], cache, *(() if beside is None else (beside[number],)))
        return x
