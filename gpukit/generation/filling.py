"""From a model's files to where its weights are: several readers, and copies beside them."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.sources.base import Source

# One reader copies out of the page cache more slowly than a device takes what comes.
READERS = 6
# Bytes that are read and copied at a time; each reader has two such buffers.
PIECE = 16 << 20

_log = logging.getLogger(__name__)


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
    `source.read`, which has to be safe from several threads.

    The last row of each piece is compared with what is stored; where it differs, that is a line of
    warning, and the piece is copied once more while nothing else happens.
    """
    pieces = [piece for want in wanted for piece in _cut(want)]
    shares = [list(islice(pieces, first, None, READERS)) for first in range(READERS)]
    with ThreadPoolExecutor(READERS) as pool:
        wrong = [p for part in pool.map(lambda share: _filled(source, share), shares) for p in part]
    if wrong:
        _log.warning(
            "copies to %s brought something else for %d of %d pieces; gpukit uses the slower path; "
            "please report this", wrong[0].place.device, len(wrong), len(pieces)
        )  # fmt: skip
    for piece in wrong:
        piece.place.copy_(_read(source, piece, 0, len(piece.place)))


def _cut(want: Want) -> list[_Piece]:
    rows = max(PIECE // max(want.place.shape[1], 1), 1)
    parts = torch.split(want.place, rows)
    return [
        _Piece(want.index, number * rows, part) for number, part in enumerate(parts) if len(part)
    ]


@torch.inference_mode()
def _filled(source: Source, pieces: Sequence[_Piece]) -> list[_Piece]:
    """Fill `pieces`; those whose last row is not what is stored."""
    for piece in pieces:
        if not _is_copy(piece):
            source.read(piece.index, piece.row, piece.place.view(-1).numpy().data)
    copies = [piece for piece in pieces if _is_copy(piece)]
    _copy(source, copies)
    return [piece for piece in copies if _differs(source, piece)]


def _copy(source: Source, pieces: Sequence[_Piece]) -> None:
    """Fill `pieces` on devices, one being copied while the next is read."""
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


def _is_copy(piece: _Piece) -> bool:
    return piece.place.device.type != "cpu"


def _differs(source: Source, piece: _Piece) -> bool:
    last = len(piece.place) - 1
    return not torch.equal(piece.place[last:].cpu(), _read(source, piece, last, 1))


def _read(source: Source, piece: _Piece, row: int, rows: int) -> Tensor:
    """Some rows of a piece, as they are stored."""
    found = torch.empty((rows, piece.place.shape[1]), dtype=torch.uint8)
    source.read(piece.index, piece.row + row, found.view(-1).numpy().data)
    return found
