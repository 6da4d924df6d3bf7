"""Blocks of a decoder that are elsewhere: on another device, or in the host's memory between two
passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.models.cache import KVCache, Unrelated
from gpukit.models.decoder import BlockFunction


@dataclass(frozen=True)
class Elsewhere:
    """`block` on `device`, whatever device its input is on."""

    block: BlockFunction
    device: torch.device

    def __call__(
        self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated, *beside: Tensor
    ) -> Tensor:
        there = (part.to(self.device) for part in beside)
        return self.block(x.to(self.device), turns.to(self.device), cache, *there)


@dataclass(frozen=True)
class HeadElsewhere:
    """`head` on `device`, whatever device its input is on."""

    head: Callable[[Tensor], Tensor]
    device: torch.device

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(x.to(self.device))


class Stream:
    """The layers of one device that come from the host: each has one of two places there, and is
    copied while those before it compute.

    `hosts` hold the bytes of each in order, in memory that copies do not wait for; a layer's place
    is `place(number)`, as long as it is.
    """

    def __init__(self, hosts: Sequence[Tensor], device: torch.device) -> None:
        self._hosts = tuple(hosts)
        size = max(len(host) for host in hosts)
        count = min(len(hosts), 2)
        self._places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._side = kernels.side_of(device)
        # Which layer each place has or is getting.
        self._holds = [-1] * count

    def place(self, number: int) -> Tensor:
        """uint8, where the bytes of layer `number` are when it runs."""
        return self._places[number % len(self._places)][: len(self._hosts[number])]

    def begin(self, number: int) -> None:
        """Let what is launched from now on find layer `number` in its place."""
        self._fetch(number)
        self._side.join(number % len(self._places))

    def end(self, number: int) -> None:
        """Let the layer that has this place next come when what is launched so far is done."""
        self._side.release(number % len(self._places))
        # Behind the last layer of a place the next pass begins with the first.
        after = number + len(self._places)
        self._fetch(after if after < len(self._hosts) else number % len(self._places))

    def _fetch(self, number: int) -> None:
        slot = number % len(self._places)
        if self._holds[slot] != number:
            self._holds[slot] = number
            self._side.copy(self.place(number), self._hosts[number], slot)


@dataclass(frozen=True)
class Streamed:
    """`block`, whose matrices are in the place of layer `number` of `stream` while it runs."""

    block: BlockFunction
    stream: Stream
    number: int

    def __call__(
        self, x: Tensor, turns: Tensor, cache: KVCache | Unrelated, *beside: Tensor
    ) -> Tensor:
        self.stream.begin(self.number)
        x = self.block(x, turns, cache, *beside)
        self.stream.end(self.number)
        return x
