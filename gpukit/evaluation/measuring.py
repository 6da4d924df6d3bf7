"""One model over all windows of a text: scores of every token, and how it stands meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpukit.evaluation.ahead import Ahead
from gpukit.evaluation.divergence import Base, Slice, alone
from gpukit.evaluation.journal import Journal
from gpukit.evaluation.perplexity import Mean, Sums
from gpukit.evaluation.scoring import Passes, Scores, joined, scores
from gpukit.evaluation.windows import Windows
from gpukit.events import Report, Status, Step, ignore
from gpukit.formats.logits import LogitsWriter, writing
from gpukit.generation.loading import LoadedModel


@dataclass(frozen=True)
class Standing:
    """How a measurement stands after some windows; the last five only beside a reference, as for
    `Divergence`."""

    perplexity: Mean
    log_ratio: Mean | None = None
    kld: Mean | None = None
    dp_rms: Mean | None = None
    same_top: Mean | None = None


@dataclass(frozen=True)
class Scored(Step):
    """`done` of `total` windows have been scored, and what this gives so far: `standing`."""

    standing: Standing | None = None


@dataclass(frozen=True)
class Measurement:
    """The scores of every token, what the windows before and including each give as perplexity
    (`running`), and the time that so many `evaluated` tokens took."""

    scores: Scores
    running: tuple[float, ...]
    evaluated: int
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """How fast tokens went through the model; None where all was known."""
        return self.evaluated / max(self.seconds, 1e-9) if self.evaluated else None


@dataclass
class _Sums:
    """What a `Standing` comes from."""

    nll: Sums
    kld: Sums
    squares: Sums
    same: Sums

    def add(self, found: Scores) -> Standing:
        self.nll.add(found.nll, found.nll_base)
        if found.nll_base is None or found.kld is None or found.same_top is None:
            return Standing(self.nll.perplexity())
        dp = np.exp(-found.nll) - np.exp(-found.nll_base)
        self.kld.add(found.kld)
        self.squares.add(dp * dp)
        self.same.add(found.same_top.astype(np.float64))
        squares = self.squares.mean_a()
        rms = float(np.sqrt(squares.value))
        return Standing(
            self.nll.perplexity(),
            self.nll.difference(),
            self.kld.mean_a(),
            Mean(rms, squares.error / (2 * rms) if rms else 0.0),
            self.same.mean_a(),
        )


def measure(
    load: Callable[[], LoadedModel],
    windows: Windows,
    name: str,
    *,
    base: Callable[[], Base] | None = None,
    journal: Journal | None = None,
    part: str = "",
    save: Path | None = None,
    report: Report = ignore,
) -> Measurement:
    """What the model that `load` gives makes of `windows`, beside the reference that `base` gives.

    Both are asked for only where the journal, by `part`, does not know all. A logits file is
    written to `save`. `report` hears a `Scored` of every window, whose text is `stage(name)`.
    `CheckpointError` for logits that are no numbers, and the errors of loading and of the files.
    """
    known = [journal.known(part, n) if journal else None for n in range(len(windows))]
    if journal is not None and (there := len(known) - known.count(None)):
        report(Status(f"{there} of {len(known)} chunks are known from {journal.path}"))
    sums, parts, running = _Sums(Sums(), Sums(), Sums(), Sums()), [], []
    scorer: _Scorer | None = None
    with ExitStack() as stack:
        for number, found in enumerate(known):
            if found is None:
                if scorer is None:
                    scorer = _Scorer.of(load(), windows, name, base, alone=save is None)
                    if save is not None:
                        writer = writing(save, windows.ids, scorer.vocab_size)
                        scorer.writer = stack.enter_context(writer)
                found = scorer.scores(number)
                if journal is not None:
                    journal.add(part, number, found)
            parts.append(found)
            standing = sums.add(found)
            running.append(standing.perplexity.value)
            report(Scored(stage(name), number + 1, len(windows), "chunks", standing))
    evaluated = windows.num_ctx * known.count(None)
    seconds = scorer.seconds if scorer else 0.0
    return Measurement(joined(parts), tuple(running), evaluated, seconds)


def stage(name: str) -> str:
    """What a measurement of the model `name` is called while it goes on."""
    return f"measuring {name}"


@dataclass
class _Scorer:
    """A loaded model with what stands beside it."""

    model: LoadedModel
    windows: Windows
    name: str
    passes: Passes
    base: Base | None
    ahead: Ahead | None = None
    writer: LogitsWriter | None = None

    @staticmethod
    def of(
        model: LoadedModel,
        windows: Windows,
        name: str,
        base: Callable[[], Base] | None,
        *,
        alone: bool,
    ) -> "_Scorer":
        """With `alone` and without a reference nobody sees the logits: they need not wait."""
        alone = alone and base is None and model.decoder.device.type != "cpu"
        ahead = Ahead(model, windows, name) if alone else None
        passes = Passes(model, windows)
        return _Scorer(model, windows, name, passes, base() if base else None, ahead)

    @property
    def seconds(self) -> float:
        return (self.ahead or self.passes).seconds

    @property
    def vocab_size(self) -> int:
        return self.model.decoder.config.vocab_size

    @torch.inference_mode()
    def scores(self, number: int) -> Scores:
        if self.ahead is not None:
            return self.ahead.scores(number)
        where = f"{self.name}: chunk {number + 1}"
        logits, targets = self.passes.logits(number), self.windows.targets(number)
        if self.base is None and self.writer is None:
            return scores(logits, targets, where, self.model.adapters)
        slices = self._slices(logits, where)
        if self.base is not None:
            return self.base.scores(number, slices, targets)
        return alone(slices, targets)

    def _slices(self, logits: Iterator[Tensor], where: str) -> Iterator[Slice]:
        for part in logits:
            found = Slice(part, where, self.model.adapters)
            if self.writer is not None:
                log_sum = found.likelihood.log_sum
                self.writer.add(part.cpu().numpy(), log_sum.float().cpu().numpy())
            yield found
