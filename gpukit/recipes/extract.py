"""A LoRA adapter from two models: what the tuned one has more than its base, to a given rank."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpukit_kernels as kernels
from gpukit.adapters import peft_writing as writing
from gpukit.adapters.base import HEAD
from gpukit.adapters.comparing import Comparison
from gpukit.adapters.low_rank import Difference, factorise
from gpukit.adapters.peft_config import MOST_RANK
from gpukit.adapters.values import Values
from gpukit.errors import ArgumentError, one_line
from gpukit.events import Report, Status, Step, Warned, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.recipes.references import Reference, locate
from gpukit.remote.hub import HubModel

TYPES = ("F32", "F16", "BF16")
COMPARING = "comparing weights"


@dataclass(frozen=True)
class ClassEnergy:
    """Tensors of one class, called by the end of their modules' names: how many, the share of the
    energy (sum of squares) of what they differ by that the adapter keeps, and ||dW|| / ||W||."""

    name: str
    tensors: int
    kept: float
    change: float


@dataclass(frozen=True)
class Extraction:
    """What was written: the folder, the bytes of its weights, the rank, the classes of tensors, how
    many were decomposed exactly and how many by random subspaces, and what there was to warn of."""

    path: Path
    size: int
    rank: int
    classes: tuple[ClassEnergy, ...]
    exact: int
    randomised: int
    kept: float
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; the size in bytes."""
        return {
            "path": str(self.path),
            "size": self.size,
            "rank": self.rank,
            "kept": self.kept,
            "exact": self.exact,
            "randomised": self.randomised,
            "classes": {
                c.name: {"tensors": c.tensors, "kept": c.kept, "change": c.change}
                for c in self.classes
            },
            "warnings": list(self.warnings),
        }


def extract_adapter(
    tuned: str | Path,
    base: str | Path,
    out: str | Path,
    rank: int,
    *,
    embeddings: bool = False,
    norms: bool = False,
    type: str = "F32",
    device: str = "auto",
    hub: bool = False,
    report: Report = ignore,
) -> Extraction:
    """Make the folder `out` with an adapter of PEFT that brings the model `base` near to `tuned`.

    Both are model folders or ids of the hub (hf.co/org/name, or with `hub` org/name) of one
    architecture. Every linear weight that differs becomes B·A of rank `rank`, the best there is;
    with `embeddings` those of embedding and head, too. With `norms` the norms that differ are saved
    whole (modules_to_save). What else differs is named in a warning with ||dW|| / ||W||. `type` is
    F32, F16 or BF16; `device` computes; in memory are one tensor at a time and the adapter. Parts
    of a model that are not text are left out.
    `ArgumentError` for a rank, a type, a device or an `out` that cannot be, `AdapterError` for
    models that do not belong together or do not differ, the readers' errors, and DiskError.

    gpukit.extract_adapter("my-tuned-llama", "llama", "my-lora", 16)
    """
    kind, out = _checked(rank, type), Path(out)
    where = kernels.device(device)
    writing.check_folder(out)
    words = locate(tuned, hub=hub), locate(base, hub=hub)
    with ExitStack() as stack:
        models = (stack.enter_context(_opened(word, report)) for word in words)
        work = _Work(Comparison(*models), rank, embeddings, norms)
        tensors = work.run(where, report)
        warnings = tuple(work.warnings())
        for line in warnings:
            report(Warned(line))
        settings = work.config(_name(words[1]))
    report(Status(f"writing {out}"))
    size = writing.write_folder(out, tensors, settings, kind)
    found = [energy for energies in work.found.values() for energy in energies]
    exact = sum(energy.exact for energy in found)
    return Extraction(
        path=out,
        size=size,
        rank=rank,
        classes=tuple(_class(name, energies) for name, energies in sorted(work.found.items())),
        exact=exact,
        randomised=len(found) - exact,
        kept=sum(e.kept for e in found) / sum(e.energy for e in found),
        warnings=warnings,
    )


def _checked(rank: int, kind: str) -> str:
    if not 0 < rank <= MOST_RANK:
        raise ArgumentError(f"a rank of {rank}; a whole number above 0 is needed")
    if kind.upper() not in TYPES:
        raise ArgumentError(
            f"unknown type {kind[:40]!r} of an adapter of PEFT; known: {', '.join(TYPES)}"
        )
    return kind.upper()


def _opened(word: Reference, report: Report) -> Checkpoint:
    path = word.fetch(report)
    if not path.is_dir():
        raise ArgumentError(f"{path}: no model folder; adapters are extracted from two of them")
    return Checkpoint(path)


def _name(base: Reference) -> str:
    """What PEFT shall load as the base."""
    model = base.model
    return model.repo if isinstance(model, HubModel) else str(Path(base.word).absolute())


@dataclass(frozen=True)
class _Energy:
    kept: float
    energy: float
    weight: float
    exact: bool


def _class(name: str, energies: Sequence[_Energy]) -> ClassEnergy:
    energy, weight = sum(e.energy for e in energies), sum(e.weight for e in energies)
    kept = sum(e.kept for e in energies)
    return ClassEnergy(name, len(energies), kept / energy, _ratio(energy, weight))


def _ratio(energy: float, weight: float) -> float:
    return math.sqrt(energy / weight) if weight else math.inf


@dataclass
class _Work:
    """The extraction of one adapter: `found` are energies by class, `left` what differs and has no
    place, by class, with the name and ||dW|| / ||W|| of each, `changed` the modules with B·A,
    `saved` those that are saved whole."""

    models: Comparison
    rank: int
    embeddings: bool
    norms: bool
    found: dict[str, list[_Energy]] = field(default_factory=dict)
    left: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        most = max((min(b.shape) for _, b in self.models.pairs if self._wanted(b)), default=0)
        if self.rank > most:
            folder = self.models.base.folder
            raise ArgumentError(
                f"a rank of {self.rank}; no weight of {folder} has more than {most}"
            )

    def _wanted(self, base: Values) -> bool:
        """Whether a tensor becomes B·A if it differs."""
        kind = self.embeddings or not self.models.is_vocabulary(base)
        return kind and self.models.is_matrix(base)

    def run(self, device: torch.device, report: Report) -> dict[str, Tensor]:
        """The adapter's tensors by name; a tensor of each model is read at a time."""
        tensors: dict[str, Tensor] = {}
        sizes = self.models.base.tensors
        done, total = 0, sum(sizes[base.name].nbytes for _, base in self.models.pairs)
        for tuned, base in self.models.pairs:
            report(Step(COMPARING, done, total))
            tensors |= self._compared(tuned, base, Difference(tuned, base, device))
            done += sizes[base.name].nbytes
        report(Step(COMPARING, total, total))
        if not self.changed:
            others = self.left or self.saved
            what = "no weight that becomes B·A differs" if others else "they are the same"
            raise self.models.fail(f"{what}; there is nothing to extract")
        return tensors

    def _compared(self, tuned: Values, base: Values, d: Difference) -> dict[str, Tensor]:
        """The tensors for what `base` differs by; none where that is nothing or has no place."""
        if not d.energy:
            return {}
        module = base.name.removesuffix(".weight")
        if self.norms and self.models.is_norm(base):
            self.saved.append(module)
            return writing.whole(base.name, tuned.read())
        if not self._wanted(base):
            kind = ".".join(base.name.split(".")[-2:])
            self.left.setdefault(kind, []).append((base.name, _ratio(d.energy, d.weight)))
            return {}
        factors = factorise(d, self.rank)
        self.changed.append(module)
        energy = _Energy(factors.kept, factors.energy, factors.weight, factors.exact)
        self.found.setdefault(module.rpartition(".")[2], []).append(energy)
        if base.name != self.models.model.embedding:
            return writing.linear(module, factors.b, factors.a)
        named = writing.embedding(module, factors.b, factors.a)
        if self.models.model.tied:
            # PEFT keeps both of what it trains as one.
            named |= writing.linear(HEAD, factors.b, factors.a)
        return named

    def warnings(self) -> Iterator[str]:
        """What differs and is not in the adapter, a line a class."""
        for kind, tensors in self.left.items():
            which, most = max(tensors, key=lambda pair: pair[1])
            yield one_line(
                f"{kind}: {len(tensors)} tensors differ and are not in the adapter, ||dW|| / ||W|| "
                f"is {most:.3g} at most ({which})"
            )

    def config(self, base: str) -> dict[str, Any]:
        """adapter_config.json."""
        matrices = [b for _, b in self.models.pairs if self.models.is_matrix(b)]
        modules = [matrix.name.removesuffix(".weight") for matrix in matrices]
        model = self.models.model
        tying = model.tied and model.embedding in [f"{name}.weight" for name in self.changed]
        targets = writing.targets(self.changed, modules)
        settings: dict[str, Any] = {"modules_to_save": self.saved} if self.saved else {}
        if tying:
            targets.append(HEAD)
            settings["ensure_weight_tying"] = True
        return writing.config(self.rank, targets, base, **settings)
