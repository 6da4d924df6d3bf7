"""Logits of windows, and what they say of each token that is scored.

Logits are there in slices of rows, so memory is independent of the vocabulary times the context;
of every token only a few numbers stay.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpukit.errors import CheckpointError
from gpukit.evaluation.windows import Windows
from gpukit.generation.loading import LoadedModel

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Logits in memory at a time: 64 MiB of float32.
SLICE = 1 << 24


@dataclass(frozen=True)
class Scores:
    """What is known of scored tokens, in order, `[count]` each.

    nll       -ln of the probability that the model gives to the token
    nll_base  the same of the reference
    kld       the divergence of the model's expectation from the reference's, in nats
    same_top  whether the likeliest token of both is the same

    All but the first only where there is a reference.
    """

    nll: Floats
    nll_base: Floats | None = None
    kld: Floats | None = None
    same_top: Bools | None = None

    def __len__(self) -> int:
        return len(self.nll)


def joined(parts: Sequence[Scores]) -> Scores:
    """All of `parts`, one behind the other; at least one, all with or all without a reference."""

    def column(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found)

    return Scores(*(column(field.name) for field in fields(Scores)))


def window_logits(
    model: LoadedModel, windows: Windows, numbers: Iterable[int]
) -> Iterator[Iterator[Tensor]]:
    """For each window in `numbers` the logits that its scored tokens are expected by: float32
    `[rows, vocab_size]`, slices of all `windows.scored` rows in order. A window's slices are to be
    taken before the next window is asked for."""
    decoder = model.decoder
    rows = slice_rows(decoder.config.vocab_size)
    for number in numbers:
        # Behind the last token nothing is scored.
        ids = windows.inputs(number)[:-1]
        states = decoder.states(ids, decoder.cache(windows.num_ctx))[windows.first :]
        yield map(decoder.head, torch.split(states, rows))


@dataclass
class Clock:
    """How long a model took for its logits, in seconds."""

    seconds: float = 0.0

    def timed(self, windows: Iterator[Iterator[Tensor]]) -> Iterator[Tensor]:
        """The slices of the next of `windows`, the time that each takes counted."""
        started = time.monotonic()
        slices = next(windows)
        while (part := next(slices, None)) is not None:
            part[0, 0].item()  # waits for the device
            self.seconds += time.monotonic() - started
            yield part
            started = time.monotonic()


def slice_rows(vocab_size: int) -> int:
    """How many rows of logits are in memory at a time."""
    return max(SLICE // vocab_size, 1)


@torch.inference_mode()
def scores(logits: Iterator[Tensor], targets: list[int], where: str) -> Scores:
    """The scores of a window's tokens without a reference. `CheckpointError`, which begins with
    `where`, for logits that are no numbers."""
    found, at = [], 0
    for part in logits:
        wanted = torch.tensor(targets[at : at + len(part)], device=part.device)
        at += len(part)
        found.append(Likelihood.of(part, where).nll(part, wanted))
    return Scores(torch.cat(found).cpu().numpy())


@dataclass(frozen=True)
class Likelihood:
    """What makes probabilities of rows of logits: p = exp(logit - top) / exp(log_sum).

    `top` is float32 `[rows]`, the largest logit, `log_sum` float64 `[rows]`; `weights` float32
    `[rows, vocab_size]` are exp(logit - top).
    """

    top: Tensor
    log_sum: Tensor
    weights: Tensor

    @staticmethod
    def of(logits: Tensor, where: str) -> "Likelihood":
        """That of float32 `[rows, vocab_size]`; `CheckpointError` for what has no largest value."""
        top = logits.amax(-1)
        if not bool(torch.isfinite(top).all()):
            row = int(torch.nonzero(~torch.isfinite(top))[0])
            raise CheckpointError(
                f"{where}: a logit is {float(top[row])}: the weights are damaged, or overflow on "
                "this device; gpukit inspect shows their types"
            )
        weights = (logits - top[:, None]).exp_()
        return Likelihood(top, weights.sum(-1, dtype=torch.float64).log_(), weights)

    def nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        """float64 `[rows]`: -ln p of the targets, int64 `[rows]`."""
        found = logits.gather(-1, targets[:, None])[:, 0]
        return self.log_sum - (found - self.top).double()
