"""Scores without a reference on a device that works by itself: it has the next pass to do while the
host reads the last one's numbers.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.evaluation.scoring import Scores, slice_rows, windows_together
from gpukit.evaluation.windows import Windows
from gpukit.generation.loading import LoadedModel
from gpukit.generation.not_finite import no_number


@dataclass(frozen=True)
class _Pass:
    """The windows `first` to `end`; when `turn` is done, float64 `found` `[2, windows, rows]` has
    -ln p of each token, and the largest logit beside it."""

    first: int
    end: int
    found: Tensor
    turn: kernels.Turn


class Ahead:
    """The scores of windows by `model`, called `name`, some of which go through it together.

    `seconds` is the time from the first question to the last answer.
    """

    def __init__(self, model: LoadedModel, windows: Windows, name: str) -> None:
        self._decoder, self._windows, self._name = model.decoder, windows, name
        self._adapters = model.adapters
        self._together = windows_together(model.decoder, windows)
        self._now: _Pass | None = None
        self._next: _Pass | None = None
        self._started: float | None = None
        self.seconds = 0.0

    def scores(self, number: int) -> Scores:
        """Those of window `number`; windows are asked for in ascending order. `CheckpointError` for
        logits that are no numbers."""
        self._started = self._started or time.monotonic()
        if self._now is None or number >= self._now.end:
            self._now = self._pass_with(number)
            self._next = self._begun(self._now.end)
            self._now.turn.wait()
        nll, top = self._now.found[:, number - self._now.first]
        if not bool(torch.isfinite(top).all()):
            logit = top[~torch.isfinite(top)][0].item()
            raise no_number(logit, f"{self._name}: chunk {number + 1}", self._adapters)
        self.seconds = time.monotonic() - self._started
        return Scores(nll.numpy())

    def _pass_with(self, number: int) -> _Pass:
        if self._next is not None and self._next.first <= number < self._next.end:
            return self._next
        self._next = None
        begun = self._begun(number)
        assert begun is not None
        return begun

    @torch.inference_mode()
    def _begun(self, first: int) -> _Pass | None:
        """The pass from window `first` on, of which nothing is waited for; None behind the last."""
        end = min(first + self._together, len(self._windows))
        if first >= end:
            return None
        numbers, turn = range(first, end), kernels.turn_on(self._decoder.device)
        with turn:
            ids = turn.put(torch.tensor([self._windows.inputs(n) for n in numbers]))
            targets = turn.put(torch.tensor([self._windows.targets(n) for n in numbers]))
            # Behind the last token of a window nothing is scored.
            states = self._decoder.states(ids)[:, self._windows.first : -1]
            found = self._of(states.flatten(0, 1), targets.flatten())
            return _Pass(first, end, turn.take(found.view(2, *targets.shape)), turn)

    def _of(self, states: Tensor, targets: Tensor) -> Tensor:
        """float64 `[2, rows]`: -ln p of each target, and the largest logit beside it."""
        size, found = slice_rows(self._decoder), []
        for part, wanted in zip(torch.split(states, size), torch.split(targets, size), strict=True):
            logits = self._decoder.head(part)
            top, log_sum, logit, _ = kernels.likelihood(logits, wanted.to(logits.device))
            found.append(torch.stack((log_sum - (logit - top).double(), top.double())))
        return torch.cat(found, 1).to(self._decoder.device)
