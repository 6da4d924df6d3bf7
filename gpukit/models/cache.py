"""The key-value cache of a generation: one place a layer, filled from the front; and sequences that
need none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpukit.errors import ArgumentError
from gpukit.models.config import ModelConfig

# The cache grows by doubling from this many positions on, up to the context.
FIRST_POSITIONS = 256


class KVCache:
    """Keys and values of every layer, float32 `[kv_heads, positions, head_dim]` each.

    `length` positions are filled; `n_ctx` is the most that fit.
    """

    def __init__(self, config: ModelConfig, n_ctx: int, device: torch.device) -> None:
        self.n_ctx = n_ctx
        self._most = config.n_ctx
        self.length = 0
        shape = (config.n_head_kv, min(FIRST_POSITIONS, n_ctx), config.head_dim)
        self._keys = [torch.empty(shape, device=device) for _ in range(config.n_layer)]
        self._values = [torch.empty(shape, device=device) for _ in range(config.n_layer)]

    def need(self, count: int) -> None:
        """`ArgumentError` where `count` more positions do not fit."""
        if self.length + count > self.n_ctx:
            raise ArgumentError(
                f"{self.length + count} tokens do not fit into a context of {self.n_ctx}; "
                f"shorten the prompt ({self.limit})"
            )

    @property
    def limit(self) -> str:
        """Whether a longer context would help where this one is full."""
        if self.n_ctx < self._most:
            return f"--num-ctx can be raised to {self._most}"
        return f"the model was made for no more than {self._most}"

    def apart(self, x: Tensor) -> Sequence[Tensor]:
        """`x` `[count, ...]` of new positions, each sequence for itself: there is one."""
        return (x,)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put `[count, kv_heads, head_dim]` behind what is there; all keys and values so far."""
        end = self.length + k.shape[0]
        for store, new in ((self._keys, k), (self._values, v)):
            if store[layer].shape[1] < end:
                store[layer] = self._grown(store[layer], end)
            store[layer][:, self.length : end] = new.transpose(0, 1)
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def cut(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        self.length = min(self.length, length)

    def advance(self, count: int) -> None:
        """Count what every layer has put in."""
        self.length += count

    def _grown(self, old: Tensor, end: int) -> Tensor:
        size = min(max(2 * old.shape[1], end), self.n_ctx)
        new = old.new_empty((old.shape[0], size, old.shape[2]))
        new[:, : self.length] = old[:, : self.length]
        return new


class Unrelated:
    """Takes a cache's place for sequences of `length` tokens that pass through the layers together,
    each from its first position on; nothing is kept."""

    def __init__(self, length: int) -> None:
        self._length = length

    def apart(self, x: Tensor) -> Sequence[Tensor]:
        """`x` `[sequences * length, ...]`, each sequence for itself."""
        return torch.split(x, self._length)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Keys and values `[kv_heads, length, head_dim]` of one sequence, which has no others."""
        return k.transpose(0, 1), v.transpose(0, 1)
