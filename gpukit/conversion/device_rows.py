"""Rows of a tensor on a device, which several outputs are made of."""

from functools import cached_property

import torch
from torch import Tensor

from gpukit.conversion.slabs import Piece
from gpukit.sources.base import Source


class DeviceRows:
    """Rows of tensor `index` of `source` on a device, made of their `stored` bytes when they are
    first asked for and once for all outputs."""

    def __init__(self, source: Source, index: int, piece: Piece, stored: Tensor) -> None:
        self._source, self._place = source, (index, piece.row, piece.rows)
        self._stored = stored

    @cached_property
    def values(self) -> Tensor:
        """float `[rows, width]`."""
        return self._source.values(*self._place, self._stored)

    @cached_property
    def before(self) -> Tensor:
        """The same without adapters."""
        return self._source.values(*self._place, self._stored, merged=False)

    @cached_property
    def extremes(self) -> Tensor:
        """The least and the largest value."""
        return torch.stack(self.values.aminmax())
