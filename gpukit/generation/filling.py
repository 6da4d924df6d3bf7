"""From a model's files to where its weights are: several readers, and copies beside them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.sources.base import Source

# A page cache gives some 5 GB/s to a thread, a device takes 50 GB/s and more.
READERS = 6
# Bytes that are read and copied at a time; each reader has two such buffers.
PIECE = 16 << 20


@dataclass(frozen=True)
class Want:
    """Tensor `index` of a source is to be in `place`, uint8 `[rows, bytes of a row]`."""

    index: int
    place: Tensor


@dataclass(frozen=True)
class _Piece:
    index: int
    row: int
    place: Tensor


def fill(source: Source, wanted: Sequence[Want]) -> None:
    """Read what is stored of each tensor into its place, on the CPU or on devices; the errors of
    `source.read`, which has to be safe from several threads."""
    pieces = [piece for want in wanted for piece in _cut(want)]
    shares = [list(islice(pieces, first, None, READERS)) for first in range(READERS)]
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda share: _filled(source, share), shares):
            pass


def _cut(want: Want) -> list[_Piece]:
    rows = max(PIECE // max(want.place.shape[1], 1), 1)
    parts = torch.split(want.place, rows)
    return [_Piece(want.index, number * rows, part) for number, part in enumerate(parts)]


@torch.inference_mode()
def _filled(source: Source, pieces: Sequence[_Piece]) -> None:
    lanes: dict[torch.device, kernels.Lane] = {}
    size = max((piece.place.numel() for piece in pieces), default=0)
    buffers: list[tuple[Tensor, kernels.Turn | None]] = []
    for number, piece in enumerate(pieces):
        place = piece.place
        lane = lanes.setdefault(place.device, kernels.Lane(place.device))
        if number < 2:
            buffers.append((kernels.copied_from(size, place.device), None))
        buffer, before = buffers[number % 2]
        if before is not None:
            before.wait()
        part = buffer[: place.numel()]
        source.read(piece.index, piece.row, part.numpy().data)
        turn = lane.turn()
        with turn:
            place.view(-1).copy_(part, non_blocking=True)
        buffers[number % 2] = (buffer, turn)
    for _, begun in buffers:
        if begun is not None:
            begun.wait()
