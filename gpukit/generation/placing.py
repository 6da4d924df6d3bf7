"""The weights of a model that is being loaded, each where its placement says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.errors import GGUFError
from gpukit.generation.filling import Want, fill
from gpukit.generation.placement import Placement, Room, placed, sizes_of
from gpukit.models.config import ModelConfig
from gpukit.models.decoder import Decoder
from gpukit.models.streamed import Elsewhere, HeadElsewhere, Stream, Streamed
from gpukit.models.style import Style
from gpukit.models.weights import Weight, with_scales
from gpukit.sources.base import Source
from gpukit.sources.gguf import GGUFSource

# Positions of a context that are counted on when weights are placed.
POSITIONS = 4096
# Matrices begin where a vector register and a copy like it.
ALIGNMENT = 256
# More than any model has: the CPU takes all, and has the page cache to help.
ENDLESS = 1 << 62


@dataclass(frozen=True)
class _Tensor:
    """Tensor `index` of a source as it is loaded: of `type`, in rows of `row_bytes`; `is_small`
    where it is decoded when a decoder is put together."""

    index: int
    name: str
    type: str
    rows: int
    row_bytes: int
    width: int
    is_small: bool

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Placed:
    """The weights of a model by name, and the streams that some of them come by: `numbers` has the
    number of a layer in the stream of its device."""

    weights: dict[str, Weight]
    placement: Placement
    streams: dict[torch.device, Stream]
    numbers: dict[int, int]

    def decoder(self, built: Decoder) -> Decoder:
        """`built` of these weights, so that each block runs where it is and has what it needs."""
        if self.placement.is_simple:
            return built
        blocks = list(built.blocks)
        for layer, (block, device) in enumerate(zip(blocks, self.placement.devices, strict=True)):
            if layer in self.placement.streamed:
                block = Streamed(block, self.streams[device], self.numbers[layer])
            blocks[layer] = Elsewhere(block, device) if device != built.device else block
        # A head that is the embedding is where that is.
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        moved = HeadElsewhere(built.head, head.blocks.device)
        return replace(built, blocks=blocks, head=moved, places=self.placement.devices)


def rooms(devices: Sequence[torch.device]) -> list[Room]:
    """What is free on each device."""
    return [
        Room(device, ENDLESS if device.type == "cpu" else kernels.free_bytes(device))
        for device in devices
    ]


def place_weights(
    source: Source, config: ModelConfig, style: Style, there: Sequence[Room]
) -> Placed:
    """The weights of `source` on devices with so much room; `GpukitError` where they fit nowhere,
    `GGUFError` for types that cannot be run, and the errors of reading."""
    tensors = [
        _described(source, index, style)
        for index, tensor in enumerate(source.tensors)
        if not config.unused.has(tensor.name)
    ]
    placement = _placement(source, config, tensors, there)
    layers = {
        layer: _Together(tuple(t for t in tensors if placement.comes(t.name, t.is_small) == layer))
        for layer in sorted(placement.streamed)
    }
    hosts = {
        layer: kernels.copied_from(part.nbytes, placement.devices[layer])
        for layer, part in layers.items()
    }
    streams, numbers = _streams(placement, hosts)
    places: dict[str, Tensor] = {}
    wants: list[tuple[_Tensor, Tensor]] = []
    for layer, part in layers.items():
        places |= part.cut(streams[placement.devices[layer]].place(numbers[layer]))
        wants += list(zip(part.tensors, part.cut(hosts[layer]).values(), strict=True))
    staying: dict[torch.device, list[_Tensor]] = {}
    for tensor in tensors:
        if tensor.name not in places:
            staying.setdefault(placement.device_of(tensor.name), []).append(tensor)
    for device, some in staying.items():
        found = _places(some, device)
        places |= found
        wants += [(tensor, found[tensor.name]) for tensor in some]
    _fill(source, wants)
    weights = {t.name: Weight(places[t.name], t.type, t.width) for t in tensors}
    return Placed(with_scales(weights), placement, streams, numbers)


@dataclass(frozen=True)
class _Together:
    """Tensors in one piece of memory."""

    tensors: tuple[_Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(_aligned(tensor.nbytes) for tensor in self.tensors)

    def cut(self, memory: Tensor) -> dict[str, Tensor]:
        """The place of each in `memory`, in order."""
        ends = accumulate(_aligned(tensor.nbytes) for tensor in self.tensors)
        return {
            t.name: memory[end - _aligned(t.nbytes) :][: t.nbytes].view(t.rows, t.row_bytes)
            for t, end in zip(self.tensors, ends, strict=True)
        }


def _places(tensors: Sequence[_Tensor], device: torch.device) -> dict[str, Tensor]:
    """Memory for each of `tensors`, not filled."""
    if device.type == "cpu":
        part = _Together(tuple(tensors))
        return part.cut(kernels.in_large_pages(part.nbytes))
    return {
        t.name: torch.empty((t.rows, t.row_bytes), dtype=torch.uint8, device=device)
        for t in tensors
    }


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _described(source: Source, index: int, style: Style) -> _Tensor:
    tensor = source.tensors[index]
    # A checkpoint's float32 weights stay float32, which a plain conversion would round.
    kind = "F32" if tensor.type == "F32" else source.stored_type(index)
    if kind not in kernels.QUANTS:
        known = ", ".join(kernels.QUANTS)
        raise GGUFError(f"{tensor.name} is {kind}; types that can be run: {known}")
    width = tensor.ne[0] if tensor.ne else 1
    row_bytes = kernels.by_name(kind).row_bytes(width)
    is_small = tensor.rows == 1 or tensor.name.endswith((".bias", *style.decoded))
    return _Tensor(index, tensor.name, kind, tensor.rows, row_bytes, width, is_small)


def _placement(
    source: Source, config: ModelConfig, tensors: Sequence[_Tensor], there: Sequence[Room]
) -> Placement:
    each = (config.at(layer) for layer in range(config.n_layer))
    kept = 4 * max(c.n_head_kv * c.head_dim for c in each) * min(config.n_ctx, POSITIONS)
    vectors = frozenset(tensor.name for tensor in tensors if tensor.is_small)
    nbytes = {tensor.name: _aligned(tensor.nbytes) for tensor in tensors}
    sizes = sizes_of(nbytes, vectors, config.n_layer, kept)
    host = kernels.free_bytes(torch.device("cpu"))
    return placed(sizes, there, host, str(source.path))


def _streams(
    placement: Placement, hosts: Mapping[int, Tensor]
) -> tuple[dict[torch.device, Stream], dict[int, int]]:
    """The stream of each device that has one, and the number of each layer in its own."""
    of: dict[torch.device, list[int]] = {}
    for layer in sorted(hosts):
        of.setdefault(placement.devices[layer], []).append(layer)
    streams = {
        device: Stream([hosts[layer] for layer in layers], device) for device, layers in of.items()
    }
    return streams, {layer: n for layers in of.values() for n, layer in enumerate(layers)}


def _fill(source: Source, wants: Sequence[tuple[_Tensor, Tensor]]) -> None:
    if isinstance(source, GGUFSource):
        fill(source, [Want(tensor.index, place) for tensor, place in wants])
        return
    for tensor, place in wants:
        nbytes = source.stored_bytes(tensor.index, tensor.rows)
        data = torch.from_numpy(np.empty(nbytes, np.uint8))
        source.read(tensor.index, 0, data.numpy().data)
        if source.passes(tensor.index, tensor.type):
            place.copy_(data.view(place.shape))
            continue
        values = source.values(tensor.index, 0, tensor.rows, data)
        place.copy_(kernels.quantize(values, tensor.type).view(place.shape))
