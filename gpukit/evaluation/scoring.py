"""Logits of windows, and what they say of each token that is scored.

Logits are there in slices of rows, so memory is independent of the vocabulary times the context;
of every token only a few numbers stay.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpukit.evaluation.windows import Windows
from gpukit.generation.loading import LoadedModel
from gpukit.generation.not_finite import no_number
from gpukit.models.decoder import Decoder

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Logits in memory at a time: 64 MiB of float32.
SLICE = 1 << 24
# Off the CPU: 1 GiB, of which a head is decoded once.
LARGE_SLICE = 1 << 28
# Tokens that go through the layers together, as llama-perplexity has it: their largest intermediate
# takes 128 MiB where it has 16 384 values a token.
PASS = 2048
# Off the CPU, where there is memory for more: a weight is decoded once for as many.
LARGE_PASS = 1 << 15


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


class Passes:
    """The logits of windows by `model`, some of which go through it together; `seconds` is the time
    that has taken, `adapters` are those in the model."""

    def __init__(self, model: LoadedModel, windows: Windows) -> None:
        self._decoder, self._windows = model.decoder, windows
        self.adapters = model.adapters
        self._together = windows_together(model.decoder, windows)
        self._states: dict[int, Tensor] = {}
        self.seconds = 0.0

    def logits(self, number: int) -> Iterator[Tensor]:
        """What the scored tokens of window `number` are expected by: float32 `[rows, vocab_size]`,
        slices of all `windows.scored` rows in order. Windows are asked for in ascending order."""
        started = time.monotonic()
        if number not in self._states:
            self._pass_through(number)
        states = self._states.pop(number)
        for part in torch.split(states, slice_rows(self._decoder)):
            logits = self._decoder.head(part)
            logits[0, 0].item()  # waits for the device
            self.seconds += time.monotonic() - started
            yield logits
            started = time.monotonic()

    @torch.inference_mode()
    def _pass_through(self, first: int) -> None:
        """Take `first` and the windows behind it through the layers, as many as pass together."""
        windows = self._windows
        numbers = range(first, min(first + self._together, len(windows)))
        ids = torch.tensor([windows.inputs(number) for number in numbers])
        # Behind the last token of a window nothing is scored.
        states = self._decoder.states(ids)[:, windows.first : -1]
        self._states = dict(zip(numbers, states, strict=True))


def windows_together(decoder: Decoder, windows: Windows) -> int:
    """How many windows pass through the layers together."""
    return max(decoder.together(PASS, LARGE_PASS) // windows.num_ctx, 1)


def slice_rows(decoder: Decoder) -> int:
    """How many rows of logits are in memory at a time."""
    size = SLICE if decoder.device.type == "cpu" else LARGE_SLICE
    return max(size // decoder.config.vocab_size, 1)


@torch.inference_mode()
def scores(
    logits: Iterator[Tensor], targets: list[int], where: str, adapters: Sequence[str] = ()
) -> Scores:
    """The scores of a window's tokens without a reference. `CheckpointError`, which begins with
    `where` and names the `adapters`, for logits that are no numbers."""
    found, at = [], 0
    for part in logits:
        wanted = torch.tensor(targets[at : at + len(part)], device=part.device)
        at += len(part)
        found.append(Likelihood.of(part, where, adapters).nll(part, wanted))
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
    def of(logits: Tensor, where: str, adapters: Sequence[str] = ()) -> "Likelihood":
        """That of float32 `[rows, vocab_size]`; `CheckpointError` for what has no largest value."""
        top = logits.amax(-1)
        if not bool(torch.isfinite(top).all()):
            raise no_number(top[~torch.isfinite(top)][0].item(), where, adapters)
        weights = (logits - top[:, None]).exp_()
        return Likelihood(top, weights.sum(-1, dtype=torch.float64).log_(), weights)

    def nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        """float64 `[rows]`: -ln p of the targets, int64 `[rows]`."""
        found = logits.gather(-1, targets[:, None])[:, 0]
        return self.log_sum - (found - self.top).double()
