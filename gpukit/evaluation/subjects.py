"""Models that are to be measured: what they are, looked at before their weights are loaded."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

import gpukit_kernels as kernels
from gpukit.conversion.in_memory import planned_blocks
from gpukit.errors import ArgumentError
from gpukit.events import Report, Warned, ignore
from gpukit.formats.file_types import FILE_TYPE, FILE_TYPES, file_type_name, file_type_of
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.imatrix import Imatrix
from gpukit.formats.logits import LogitsFile
from gpukit.generation.loading import Description, LoadedModel, at_path, load_model
from gpukit.models.weights import Weight, Weights
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.sources.base import Source
from gpukit.sources.merged import Merge
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer
from gpukit_kernels.devices import Device

# Hears what a model was quantised from, the plan, and the bytes of each of its outputs.
Heed = Callable[[Source, QuantizePlan, Sequence[Tensor]], None]


@dataclass(frozen=True)
class Subject:
    """A model at `path` that can be loaded, called `name`.

    type      its file type, or that of most weights
    as_type   the file type that it is quantised to when it is loaded, if any
    nbytes    of its tensors; weights: how many they hold
    """

    name: str
    path: Path
    type: str
    nbytes: int
    weights: int
    tokenizer: Tokenizer
    vocab_size: int
    n_ctx: int
    files: tuple[Path, ...]
    as_type: str | None = None
    imatrix: Imatrix | None = None
    adapters: Merge | None = None
    called: tuple[str, ...] = ()
    pre: str | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    def load(
        self, device: Device = "auto", report: Report = ignore, heed: Heed | None = None
    ) -> LoadedModel:
        """The model on `device`; `heed` hears what it was quantised from and to, if it was. The
        errors of `load_model`, and of quantising."""
        if self.as_type is None:
            return load_model(
                self.path, device, self.pre,
                adapters=self.adapters, names=self.called, report=report,
            )  # fmt: skip
        started = time.monotonic()
        place = kernels.device(device)
        with self.quantised(device, report) as (source, plan, blocks):
            found = Description.of(source)
            if heed is not None:
                heed(source, plan, blocks)
            weights = {
                spec.name: Weight(part.to(place), spec.type, spec.ne[0] if spec.ne else 1)
                for spec, part in zip(plan.specs, blocks, strict=True)
            }
            with at_path(self.path):
                decoder = found.build(Weights(weights))
        return LoadedModel(
            decoder, found.tokenizer, time.monotonic() - started, self.name,
            self.adapters.words if self.adapters is not None else (),
        )  # fmt: skip

    @contextmanager
    def quantised(
        self, device: Device = "auto", report: Report = ignore
    ) -> Iterator[tuple[Source, QuantizePlan, list[Tensor]]]:
        """The model before, what becomes of it as `as_type`, and the bytes of that."""
        assert self.as_type is not None
        with open_source(self.path, self.pre, self.adapters) as source:
            plan = plan_quantize(source, self.as_type, Options(imatrix=self.imatrix))
            for line in plan.warnings:
                report(Warned(line))
            yield source, plan, planned_blocks(source, plan, device=device, report=report)

    def identity(self) -> dict[str, Any]:
        """What tells this model from others, as JSON: its files with sizes and times."""
        files = list(self.files)
        if self.imatrix is not None:
            files.append(self.imatrix.path)
        chosen = self.adapters.adapters if self.adapters is not None else ()
        return {
            "files": [file for path in files for file in marks(path)],
            "type": self.as_type,
            "adapters": [[each.weight, marks(each.path)] for each in chosen],
        }


def look(
    path: Path,
    name: str,
    *,
    as_type: str | None = None,
    imatrix: Imatrix | None = None,
    adapters: Merge | None = None,
    called: Sequence[str] = (),
    pre: str | None = None,
) -> Subject:
    """The model at `path`, as it is or as it will be as file type `as_type`; no weights are read.

    The errors of the readers; `ArgumentError` for a type that it cannot become, `AdapterError` for
    adapters that have to be merged into it and do not fit.
    """
    with open_source(path, pre, adapters if as_type is not None else None) as source:
        found = Description.of(source)
        specs: Sequence[TensorSpec] = source.tensors
        label = _label(source)
        if as_type is not None:
            specs = plan_quantize(source, as_type, Options(imatrix=imatrix)).specs
            label = file_type_of(as_type).name
        else:
            specs = _stored(source)
        return Subject(
            name=name,
            path=path,
            type=label,
            nbytes=sum(spec.nbytes for spec in specs),
            weights=sum(prod(spec.ne) for spec in specs),
            tokenizer=found.tokenizer,
            vocab_size=found.config.vocab_size,
            n_ctx=found.config.n_ctx,
            files=source.files,
            as_type=as_type,
            imatrix=imatrix,
            adapters=adapters,
            called=tuple(called),
            pre=pre,
        )


def _label(source: Source) -> str:
    """The file type that a GGUF names, else the type of most weights."""
    number = source.get(FILE_TYPE)
    if not source.is_checkpoint and number is not None:
        name = file_type_name(number)
        if name in FILE_TYPES and name != "F32":
            return name
    return source.label


def _stored(source: Source) -> list[TensorSpec]:
    """The tensors as they are loaded."""
    kinds = [
        "F32" if tensor.type == "F32" else source.stored_type(index)
        for index, tensor in enumerate(source.tensors)
    ]
    known = kernels.QUANTS
    return [
        TensorSpec(tensor.name, tensor.ne, kind if kind in known else tensor.type)
        for tensor, kind in zip(source.tensors, kinds, strict=True)
    ]


def marks(path: Path) -> list[list[Any]]:
    """Name, size and time of change of a file, or of every file in a folder."""
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    return [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in files]


def check_same_vocabulary(reference: Subject | LogitsFile, model: Subject) -> None:
    """`ArgumentError` where a reference and a model do not say the same by the same number: what
    they expect cannot be compared."""
    if isinstance(reference, LogitsFile):
        size = reference.shape.vocab_size
        if size != model.vocab_size:
            raise ArgumentError(
                f"{reference.path}: made with a vocabulary of {size} tokens, {model.name} has "
                f"{model.vocab_size}; make it again with a model of this one"
            )
        return
    if why := _difference(reference, model):
        raise ArgumentError(
            f"{reference.name} and {model.name} have different vocabularies: {why}; compare models "
            "of one vocabulary, as a model and its quantised forms"
        )


def _difference(one: Subject, other: Subject) -> str:
    if one.vocab_size != other.vocab_size:
        return f"{one.vocab_size} and {other.vocab_size} tokens"
    pairs = zip(one.tokenizer.tokens, other.tokenizer.tokens, strict=False)
    for number, (a, b) in enumerate(pairs):
        if a != b:
            return f"token {number} is {a[:40]!r} and {b[:40]!r}"
    if one.tokenizer.n_vocab != other.tokenizer.n_vocab:
        return f"{one.tokenizer.n_vocab} and {other.tokenizer.n_vocab} tokens have a text"
    return ""
