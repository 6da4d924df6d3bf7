"""Where the weights of a model go: to one device or several by layers, and what has no room there
into the host's memory, from which it comes for each pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gpukit.errors import GpukitError
from gpukit.formats.gguf_fields import layer_of

GIB = 1 << 30
# What stays free beside weights and cache: what a pass computes with, and the device's own.
HEADROOM = 2 * GIB


@dataclass(frozen=True)
class Room:
    """A device and the bytes that are free there."""

    device: torch.device
    free: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model: `layers` of the matrices of each, `ends` of all that is in none, `small` of
    the vectors of layers, `kept` of a layer's keys and values."""

    layers: tuple[int, ...]
    ends: int
    small: int = 0
    kept: int = 0

    @property
    def all(self) -> int:
        return sum(self.layers) + self.ends + self.small


@dataclass(frozen=True)
class Placement:
    """The device of each layer, and which of them come from the host's memory for each pass."""

    devices: tuple[torch.device, ...]
    streamed: frozenset[int] = frozenset()

    @property
    def is_simple(self) -> bool:
        """Whether everything stays on one device."""
        return not self.streamed and len(set(self.devices)) <= 1

    def device_of(self, name: str) -> torch.device:
        """Where the tensor `name` is. What is in no layer is on the first device, but for the last
        norm and the head."""
        layer, last = layer_of(name), len(self.devices) - 1
        if layer is None:
            return self.devices[last if name.startswith("output") else 0]
        return self.devices[min(layer, last)]

    def comes(self, name: str, vector: bool) -> int | None:
        """The layer that the tensor `name` comes with for each pass; None where it stays, as all
        vectors do."""
        layer = layer_of(name)
        return layer if layer in self.streamed and not vector else None


def sizes_of(nbytes: Mapping[str, int], vectors: frozenset[str], layers: int, kept: int) -> Sizes:
    """Those of tensors with so many bytes; `vectors` are the names of what has one row."""
    matrices, ends, small = [0] * layers, 0, 0
    for name, size in nbytes.items():
        layer = layer_of(name)
        if layer is None or layer >= layers:
            ends += size
        elif name in vectors:
            small += size
        else:
            matrices[layer] += size
    return Sizes(tuple(matrices), ends, small, kept)


def placed(sizes: Sizes, rooms: Sequence[Room], host: int, name: str) -> Placement:
    """Where a model called `name` goes, with `host` bytes free beside the devices: each device has
    neighbouring layers, as many as its part of all free memory. `GpukitError` where they do not fit
    anywhere."""
    shares = _shares(sizes, rooms)
    streamed: list[int] = []
    for number, (room, layers) in enumerate(zip(rooms, shares, strict=True)):
        ends = sizes.ends if number == 0 else 0
        left = room.free - HEADROOM - ends - sizes.small - len(layers) * sizes.kept
        found = _streamed(sizes, layers, left)
        if found is None:
            raise _no_room(sizes, rooms, host, name)
        streamed += found
    # Memory that copies do not wait for comes in powers of two.
    if sum(1 << (sizes.layers[layer] - 1).bit_length() for layer in streamed) > host:
        raise _no_room(sizes, rooms, host, name)
    devices = [room.device for room, layers in zip(rooms, shares, strict=True) for _ in layers]
    return Placement(tuple(devices), frozenset(streamed))


def _shares(sizes: Sizes, rooms: Sequence[Room]) -> list[range]:
    """The layers of each device; each has the next as long as its part of all bytes is not full."""
    free = [max(room.free - HEADROOM, 1) for room in rooms]
    total = sum(sizes.layers) + sizes.ends
    shares, first, filled, bound = [], 0, sizes.ends, 0.0
    for part in free[:-1]:
        bound += total * part / sum(free)
        end = first
        while end < len(sizes.layers) and filled + sizes.layers[end] / 2 <= bound:
            filled += sizes.layers[end]
            end += 1
        shares.append(range(first, end))
        first = end
    return [*shares, range(first, len(sizes.layers))]


def _streamed(sizes: Sizes, layers: range, left: int) -> list[int] | None:
    """Which of `layers` have to be streamed where `left` bytes are there for all: as few as
    possible, evenly among the others, that a copy has several layers' time; None where not even
    the two places that they pass through have room."""
    sum_of = sum(sizes.layers[layer] for layer in layers)
    if sum_of <= left:
        return []
    for count in range(1, len(layers) + 1):
        chosen = [
            layer
            for number, layer in enumerate(layers)
            if (number + 1) * count // len(layers) > number * count // len(layers)
        ]
        places = 2 * max(sizes.layers[layer] for layer in chosen)
        if sum_of - sum(sizes.layers[layer] for layer in chosen) + places <= left:
            return chosen
    return None


def _no_room(sizes: Sizes, rooms: Sequence[Room], host: int, name: str) -> GpukitError:
    there = ", ".join(f"{room.device} has {room.free / GIB:.1f} GiB free" for room in rooms)
    return GpukitError(
        f"{name}: its weights need {sizes.all / GIB:.1f} GiB and {HEADROOM / GIB:.0f} GiB beside "
        f"them on a device; {there}, the host {host / GIB:.1f} GiB; quantise it to a smaller type, "
        "or free memory"
    )
