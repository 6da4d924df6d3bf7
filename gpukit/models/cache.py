"""The cache of a generation: keys and values of attention, filled from the front, and the states of
recurrent layers; and sequences that need none.
"""

from collections.abc import Collection, Sequence
from itertools import repeat

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import ArgumentError
from gpukit.models.config import ModelConfig
from gpukit.models.states import State, States

# The cache grows by doubling from this many positions on, up to the context.
FIRST_POSITIONS = 256


def kept_dtype(device: torch.device) -> torch.dtype:
    """What keys and values are kept as on `device`: float16, as llama.cpp does, but on the CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


class KVCache:
    """Keys and values of every layer with attention, `dtype` `[kv_heads, capacity, head_dim]` each,
    and the states of the others; one that has the keys and values of another takes no room.

    `length` positions are filled, those behind are zeros or were cut; `n_ctx` is the most that fit.
    `capacity` is how many every layer has room for: a power of two, or `n_ctx`. `devices` has the
    place of each layer, or of all.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_ctx: int,
        devices: torch.device | Sequence[torch.device],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_ctx = n_ctx
        self._most = config.n_ctx
        self.length = 0
        self.capacity = min(FIRST_POSITIONS, n_ctx)
        first = devices if isinstance(devices, torch.device) else devices[0]
        self.dtype = dtype or kept_dtype(first)
        self._of = config.kv_layers
        places = repeat(devices) if isinstance(devices, torch.device) else devices
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        for number, place in zip(range(config.n_layer), places, strict=False):
            if self._of[number] == number and not config.is_recurrent(number):
                own = config.at(number)
                shape = (own.n_head_kv, self.capacity, own.head_dim)
                self._layers[number] = _zeros(shape, place, dtype), _zeros(shape, place, dtype)
        self._states = States()

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, `[kv_heads, capacity, head_dim]`; what is written behind
        `length` counts with the next `advance`. `reserve` may replace them by larger ones."""
        return self._layers[self._of[number]]

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

    def reserve(self, count: int) -> None:
        """Make room in every layer for `count` more positions, which `need` has found to fit."""
        size = self.capacity
        while size < self.length + count:
            size = min(2 * size, self.n_ctx)
        if size > self.capacity:
            # Layer by layer: what is replaced is free before the next one grows.
            for number in list(self._layers):
                self._layers[number] = self._grown(self._layers[number], size)
            self.capacity = size

    def positions(self, count: int, device: torch.device) -> Tensor:
        """int64 `[count]`: where the next `count` tokens are."""
        return torch.arange(self.length, self.length + count, device=device)

    def taken(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`q`, and `k` and `v` behind all keys and values so far, which they have been put behind:
        `[1, positions, heads, head_dim]` each of `[count, heads, head_dim]`."""
        end = self.length + k.shape[0]
        for store, new in zip(self._layers[layer], (k, v), strict=True):
            store[:, self.length : end] = new.transpose(0, 1)
        return self.shared(layer, q)

    def shared(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for `q` of another layer, with what `taken` has put into `layer` before, where
        `q` is."""
        end = self.length + q.shape[0]
        k, v = (x[:, :end].transpose(0, 1)[None].to(q.device) for x in self._layers[layer])
        return q[None], k, v

    def sequences(self, x: Tensor) -> Tensor:
        """`[1, count, ...]` of `[count, ...]`."""
        return x[None]

    def state(self, layer: int) -> State | None:
        """The state of a recurrent layer behind `length` positions; None where there are none."""
        return self._states.of(layer)

    def put(self, layer: int, state: State) -> None:
        """What the state of a recurrent layer is from the next `advance` on."""
        self._states.put(layer, state)

    def note(self) -> None:
        """Note the states of recurrent layers, so that `cut` can come back to here."""
        self._states.note(self.length)

    def cut(self, length: int) -> None:
        """Forget all but the first `length` positions; more where recurrent layers are, which go
        back to what was noted last before, or to the beginning."""
        if length < self.length:
            self.length = self._states.back(length)

    def advance(self, count: int) -> None:
        """Count what every layer has put in."""
        self.length += count
        self._states.commit()

    def _grown(self, pair: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
        found = []
        for old in pair:
            new = _zeros((old.shape[0], size, old.shape[2]), old.device, old.dtype)
            new[:, : self.length] = old[:, : self.length]
            found.append(new)
        return found[0], found[1]


def _zeros(shape: tuple[int, ...], place: torch.device, dtype: torch.dtype | None) -> Tensor:
    return kernels.zeros_by_page(shape, dtype or kept_dtype(place), place)


class Unrelated:
    """Takes a cache's place for sequences of `length` tokens that pass through the layers together,
    each from its first position on; nothing is kept, but for the keys and values of the layers
    `lent`, which others ask for. Keys and values are `dtype`."""

    def __init__(
        self, length: int, dtype: torch.dtype = torch.float32, lent: Collection[int] = ()
    ) -> None:
        self._length = length
        self.dtype = dtype
        self._lent = lent
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, count: int, device: torch.device) -> Tensor:
        """int64 `[count]`: where each of `count` tokens is in its sequence."""
        return torch.arange(count, device=device) % self._length

    def sequences(self, x: Tensor) -> Tensor:
        """`[sequences, length, ...]` of `[sequences * length, ...]`."""
        return x.reshape(-1, self._length, *x.shape[1:])

    def state(self, layer: int) -> State | None:  # noqa: ARG002
        """None: before each sequence there is nothing."""
        return None

    def put(self, layer: int, state: State) -> None:
        """Nothing."""

    def taken(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All three `[sequences, length, heads, head_dim]` of
        `[sequences * length, heads, head_dim]`."""
        found = self.sequences(k).to(self.dtype), self.sequences(v).to(self.dtype)
        if layer in self._lent:
            self._kept[layer] = found
        return self.sequences(q), *found

    def shared(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for `q` of another layer, with what `taken` has been given of `layer`."""
        k, v = (x.to(q.device) for x in self._kept[layer])
        return self.sequences(q), k, v
