"""A LoRA adapter from two models: what the tuned one has more than its base, to a given rank."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpukit_kernels as kernels
from gpukit.adapters import peft_writing as writing
from gpukit.adapters.comparing import Comparison
from gpukit.adapters.extracting import Energy, Extractor, ratio
from gpukit.adapters.numbers import MOST_RANK
from gpukit.errors import ArgumentError
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.new_folder import check_folder
from gpukit.given import path_of
from gpukit.recipes.references import Reference, locate
from gpukit.remote.hub import HubModel
from gpukit_kernels.devices import Device

TYPES = ("F32", "F16", "BF16")


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
    device: Device = "auto",
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
    kind, out = _checked(rank, type), path_of(out, "a path for the output")
    where = kernels.device(device)
    writing.check_folder(out)
    words = locate(tuned, hub=hub), locate(base, hub=hub)
    check_folder(out, [word.model for word in words if isinstance(word.model, Path)])
    with ExitStack() as stack:
        models = (stack.enter_context(_opened(word, report)) for word in words)
        work = Extractor(Comparison(*models), rank, embeddings, norms)
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


def _class(name: str, energies: Sequence[Energy]) -> ClassEnergy:
    energy, weight = sum(e.energy for e in energies), sum(e.weight for e in energies)
    kept = sum(e.kept for e in energies)
    return ClassEnergy(name, len(energies), kept / energy, ratio(energy, weight))
