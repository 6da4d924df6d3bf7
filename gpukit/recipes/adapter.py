"""A GGUF LoRA adapter from one of PEFT, mlx-lm or llama.cpp, beside a model that stays as it is."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.adapters.base import Base
from gpukit.adapters.copies import without_copies
from gpukit.adapters.experts import Layout
from gpukit.adapters.file import TYPES, plan_file
from gpukit.adapters.gguf import gguf_base
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.target import Target
from gpukit.errors import ArgumentError
from gpukit.events import Report, Status, Warned, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_split import GGUFModel
from gpukit.formats.outputs import check_output
from gpukit.given import path_of
from gpukit.models.importer import plan_tensors
from gpukit.recipes.references import adapter_path, locate
from gpukit.sources.opening import check_whole


@dataclass(frozen=True)
class AdapterResult:
    """What was written: the file and its size in bytes, the architecture that it is for, alpha, the
    ranks of its pairs, how many there are and of how many the scale went into B, the tensors of
    each type, and what there was to warn of."""

    path: Path
    size: int
    architecture: str
    alpha: float
    ranks: tuple[int, ...]
    pairs: int
    folded: int
    types: Mapping[str, int]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; the size in bytes."""
        return {
            "path": str(self.path),
            "size": self.size,
            "architecture": self.architecture,
            "alpha": self.alpha,
            "ranks": list(self.ranks),
            "pairs": self.pairs,
            "folded": self.folded,
            "types": dict(self.types),
            "warnings": list(self.warnings),
        }


def write_adapter(
    adapter: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    type: str = "F32",
    hub: bool = False,
    strict: bool = False,
    layout: str | None = None,
    report: Report = ignore,
) -> AdapterResult:
    """Write `adapter` as a GGUF LoRA adapter for `base`, whole or not at all.

    `adapter` is a folder of PEFT or mlx-lm, the file of weights in one, a GGUF adapter, or an id of
    the hub (hf.co/org/name). `base` is any word for a model, with `hub` an id of the hub; of its
    weights only those are read that the adapter has a copy of. `type` is F32, F16, BF16 or Q8_0;
    rows that no block of Q8_0 divides stay F16. With `strict` an adapter that names another base is
    refused; `layout` tells how the tensors of experts lie where that cannot be seen (peft,
    peft-0.18, unsloth). `report` hears warnings.
    The file is what llama.cpp's converter writes, with every scale right: what is not alpha / rank
    is multiplied into B, and then the key gpukit.adapter.folded says so.
    `AdapterError` for what no GGUF adapter can hold (DoRA, whole tensors, biases, tokens) and for
    an adapter of another base, `ArgumentError`, NotFoundError and DiskError as `convert`.

    gpukit.write_adapter("my-lora", "llama", "my-lora.gguf")
    """
    kind, lying, out = _type(type), _layout(layout), path_of(out, "a path for the output")
    check_output(out)
    place = locate(base, hub=hub)
    path = adapter_path(adapter, report=report)
    with (
        _opened(place.fetch(report)) as (to, files),
        open_adapter(path, to.base, layout=lying, strict=strict, activated=True) as opened,
    ):
        found = without_copies(opened, to.base, to.checkpoint)
        check_output(out, [*found.files, *files])
        for line in found.warnings:
            report(Warned(line))
        file = plan_file(found, to, kind)
        report(Status(f"writing {out}"))
        writer = file.write(out)
    plan = file.plan
    return AdapterResult(
        path=out,
        size=writer.size,
        architecture=to.architecture,
        alpha=plan.alpha,
        ranks=plan.ranks,
        pairs=len(plan.pairs),
        folded=plan.folded,
        types=Counter(spec.type for spec in file.specs),
        warnings=found.warnings,
    )


def _type(name: str) -> str:
    if name.upper() not in TYPES:
        raise ArgumentError(f"unknown type {name[:40]!r} of an adapter; known: {', '.join(TYPES)}")
    return name.upper()


def _layout(name: str | None) -> Layout | None:
    known = {layout.value: layout for layout in Layout}
    if name is not None and name not in known:
        raise ArgumentError(f"unknown layout {name[:40]!r} of experts; known: {', '.join(known)}")
    return known[name] if name is not None else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Target, tuple[Path, ...]]]:
    """The model at `path`, and the files that it is in; no vocabulary is read."""
    if path.is_dir():
        with Checkpoint(path) as checkpoint:
            name, tensors = plan_tensors(checkpoint)
            shapes = {tensor.name: tuple(reversed(tensor.ne)) for tensor in tensors}
            base = Base.of(checkpoint)
            yield Target(base, name, tensors, shapes, checkpoint), tuple(checkpoint.files)
        return
    check_whole(path)
    with GGUFModel(path) as model:
        if model.get("general.type") == "adapter":
            raise ArgumentError(f"{path}: an adapter; its base is the model that it was made for")
        base = gguf_base(model)
        shapes = {rule.name: rule.full_shape for rule in base.rules}
        name = str(model.get("general.architecture"))
        yield Target(base, name, base.rules, shapes), model.paths
