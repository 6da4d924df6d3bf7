"""The reference that several models are measured beside, loaded once for all of them."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from gpukit.errors import counted
from gpukit.evaluation.divergence import Base, FileBase, ModelBase
from gpukit.evaluation.kept import KeptPasses
from gpukit.evaluation.measuring import Measurement
from gpukit.evaluation.perplexity import Sums
from gpukit.evaluation.scoring import Passes, Scores
from gpukit.evaluation.subjects import Subject
from gpukit.evaluation.windows import Windows
from gpukit.events import Report, Status
from gpukit.formats.logits import LogitsFile
from gpukit.generation.loading import LoadedModel
from gpukit.recipes.asked import Asked
from gpukit.recipes.measured import Ready
from gpukit_kernels.devices import Device


@dataclass
class SubjectReference:
    """The reference of so many `models`, loaded when it is first asked for and then kept."""

    base: Subject | LogitsFile | None
    windows: Windows
    device: Device
    report: Report
    models: int
    _open: Base | None = None

    @property
    def name(self) -> str | None:
        match self.base:
            case Subject():
                return self.base.name
            case LogitsFile():
                return str(self.base.path)
        return None

    def open(self) -> Base:
        if self._open is None:
            if isinstance(self.base, LogitsFile):
                self._open = FileBase(self.base)
            else:
                assert self.base is not None
                model = self.base.load(self.device, self.report)
                self._open = ModelBase(self._passes(model), self.base.name)
        return self._open

    def _passes(self, model: LoadedModel) -> Passes:
        if self.models < 2:
            return Passes(model, self.windows)
        found = KeptPasses(model, self.windows)
        chunks = len(self.windows)
        rest = f", through the other {chunks - found.room} once a model"
        self.report(Status(
            f"{self.name} goes through {found.room} of {counted(chunks, 'chunk')} once for "
            f"{self.models} models{rest if found.room < chunks else ''}"
        ))  # fmt: skip
        return found

    def measured(self, beside: Measurement) -> Measurement:
        """What the reference itself scored while `beside` was measured."""
        nll = beside.scores.nll_base
        assert nll is not None
        sums, running = Sums(), []
        for part in np.split(nll, len(beside.running)):
            sums.add(part)
            running.append(sums.perplexity().value)
        seconds = self._open.passes.seconds if isinstance(self._open, ModelBase) else 0.0
        return Measurement(Scores(nll), tuple(running), beside.evaluated, seconds)


class SharedReference:
    """The reference that up to so many `models` have, which are asked for one by one."""

    def __init__(self, models: int) -> None:
        self._models = models
        self._key: object = None
        self._reference: SubjectReference | None = None

    def of(self, ready: Ready, asked: Asked, report: Report) -> SubjectReference:
        """The reference of what is asked for: the last one if it is the same on the same text."""
        if not isinstance(ready.base, Subject):
            return SubjectReference(ready.base, ready.base_windows, asked.device, report, 1)
        windows = ready.base_windows
        key = (
            json.dumps(ready.base.identity()), asked.device, windows.num_ctx, windows.scored,
            hashlib.sha256(windows.ids.tobytes()).digest(),
        )  # fmt: skip
        if self._reference is None or key != self._key:
            self._key = key
            self._reference = SubjectReference(
                ready.base, windows, asked.device, report, self._models
            )
        return self._reference
