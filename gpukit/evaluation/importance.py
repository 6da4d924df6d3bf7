"""Collects the importance of columns: what comes in at every linear map while a model reads.

Of each column the sum of squares and the sum of the values, of each matrix the number of rows, as
llama-imatrix collects them: of tensors named blk.*, routers included, and with `process_output` of
the head, which is token_embd.weight where a model ties it. An expert has its own sums, over the
rows that are sent to it. Source: llama.cpp, tools/imatrix/imatrix.cpp.

llama.cpp adds row after row in float32: from some 10 000 rows on the last digits go, and a sum that
is 2^24 times what comes in stands still. Here the rows of a chunk are added in float64, and then to
the total, which is rounded to float32 once a chunk, as files hold it. So a run that goes on from a
file gives the same bits as one that was never interrupted.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpukit.errors import CheckpointError
from gpukit.formats.imatrix import Collection, Sums
from gpukit.generation.not_finite import cause
from gpukit.models.weights import Site

HEAD = ("output.weight", "token_embd.weight")


class Collector:
    """Sums of what the linear maps of a model hear; an `Observer` for `load_model`.

    `end_chunk` takes what was heard since the last one into the totals. The model's `name` and its
    `adapters` are for messages.
    """

    def __init__(
        self,
        *,
        process_output: bool = False,
        name: str = "the model",
        adapters: Sequence[str] = (),
    ) -> None:
        self.process_output = process_output
        self._name, self._adapters = name, adapters
        self._totals: dict[str, Sums] = {}
        self._heard: dict[str, _Heard] = {}

    def __call__(self, site: Site, x: Tensor) -> None:
        """Hear of `x`, float32 `[..., columns]`, on its way to the rows of `site`."""
        if not (site.name.startswith("blk.") or (self.process_output and site.name in HEAD)):
            return
        rows = x.reshape(-1, x.shape[-1])
        heard = self._heard.get(site.name)
        if heard is None:
            heard = self._heard[site.name] = _Heard(site.matrices, rows)
        heard.add(site.first // site.rows, rows)

    def begin(self, entries: Mapping[str, Sums]) -> None:
        """Go on from totals that were collected before."""
        self._totals = dict(entries)

    def end_chunk(self) -> None:
        """Add what was heard to the totals; `CheckpointError` where it is no number."""
        for name, heard in self._heard.items():
            found = self._totals[name] = _added(self._totals.get(name), heard)
            self._check(name, found.squares)
        self._heard = {}

    def _check(self, name: str, squares: npt.NDArray[np.float32]) -> None:
        if np.isfinite(squares).all():
            return
        matrix, column = (int(i[0]) for i in np.nonzero(~np.isfinite(squares)))
        where = f"{name}, expert {matrix}" if len(squares) > 1 else name
        raise CheckpointError(
            f"{self._name}: {where}: column {column} has a sum of squares of "
            f"{squares[matrix, column]}{cause(self._adapters)}"
        )

    @property
    def entries(self) -> Mapping[str, Sums]:
        """The totals so far by weight name."""
        return dict(self._totals)


class _Heard:
    """What came to one tensor in a chunk, on the model's device; counts on the host."""

    def __init__(self, matrices: int, like: Tensor) -> None:
        shape = (2, matrices, like.shape[-1])
        self.sums = torch.zeros(shape, dtype=torch.float64, device=like.device)
        self.counts = np.zeros(matrices, np.int64)

    def add(self, matrix: int, rows: Tensor) -> None:
        # Squares are float32, as llama.cpp's; each is off by 2^-24 at most, to either side.
        self.sums[0, matrix] += rows.square().sum(0, dtype=torch.float64)
        self.sums[1, matrix] += rows.sum(0, dtype=torch.float64)
        self.counts[matrix] += len(rows)


def _added(total: Sums | None, heard: _Heard) -> Sums:
    sums, counts = heard.sums.cpu().numpy(), heard.counts
    if total is not None:
        assert total.sums is not None  # whoever goes on has them
        sums = sums + np.stack((total.squares, total.sums))
        counts = counts + total.counts
    with np.errstate(over="ignore"):
        squares, values = sums.astype(np.float32)
    return Sums(squares, counts, values)


def in_all(found: Collection) -> int:
    """The chunks that a collection stands for: the most rows of a matrix over the tokens of a
    chunk, as llama.cpp counts them."""
    most = max(int(sums.counts.max()) for sums in found.entries.values())
    return (most + found.chunk_size // 2) // found.chunk_size
