"""The models and adapters that the entries of a plan mean, by name."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.batches.document import Place
from gpukit.batches.journal import journal_of
from gpukit.batches.reading import ReadPlan
from gpukit.errors import ArgumentError, GpukitError, NotFoundError
from gpukit.formats.folder import file_names, has_weights, model_name
from gpukit.formats.gguf_split import part_of
from gpukit.formats.paths import expanded
from gpukit.recipes.chosen import split_weight
from gpukit.recipes.references import Reference, locate, locate_adapter
from gpukit.remote.hub import HubModel
from gpukit.store.names import ModelName
from gpukit.store.store import Store

if TYPE_CHECKING:
    from gpukit.batches.schema_entries import Adapter, Source

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors", "adapter_model.safetensors")
NONE = "none"


@dataclass(frozen=True)
class Input:
    """A model and what it is called, or adapters merged together, each with its weight."""

    name: str
    source: Reference | None = None
    adapters: tuple[tuple[Path | HubModel, float], ...] = ()


def sources_of(read: ReadPlan, place: Place, entry: "Source") -> list[tuple[Place, Input]]:
    """The models that an entry of `sources` means, by name."""
    words: list[str | Path] = [entry.path]
    if _is_glob(read, entry.path):
        words = list(_matching_models(read, entry.path))
        if not words:
            raise read.document.fault(place, f"{entry.path}: no model matches, neither among paths "
                                      f"from {read.folder} on nor in the store")  # fmt: skip
    if entry.name is not None and len(words) > 1:
        raise read.document.fault(
            place, f"{entry.path}: {len(words)} models match; one name is for one model"
        )
    found = []
    for word in words:
        try:
            reference = locate(word, folder=read.folder)
        except (NotFoundError, ArgumentError) as error:
            raise type(error)(f"{read.document.where(place)}: {error}") from None
        name = entry.name or _name_of(reference.model)
        found.append((place, Input(checked(read, place, name), reference)))
    return found


def adapters_of(read: ReadPlan, place: Place, entry: "Adapter") -> list[Input]:
    """What an entry of `adapters` means: one thing to merge, or of a glob one for each match."""
    if len(entry.paths) == 1 and _is_glob(read, entry.paths[0]):
        path, weight = split_weight(entry.paths[0])
        matched = [p for p in _matching_paths(read, str(path)) if _is_adapter(p)]
        if not matched or entry.name is not None:
            raise read.document.fault(place, f"{path}: {len(matched)} adapters match; name them"
                                      if entry.name else f"{path}: no adapter matches")  # fmt: skip
        return [_together(read, place, [(p, weight)], None) for p in matched]
    parts: list[tuple[Path | HubModel, float]] = []
    for word in entry.paths:
        bare, weight = (word, 1.0) if (read.folder / word).exists() else split_weight(word)
        try:
            parts.append((locate_adapter(bare, folder=read.folder), weight))
        except GpukitError as error:
            raise type(error)(f"{read.document.where(place)}: {error}") from None
    return [_together(read, place, parts, entry.name)]


def _together(
    read: ReadPlan, place: Place, parts: list[tuple[Path | HubModel, float]], name: str | None
) -> Input:
    names = [_name_of(part) + (f"-{weight:g}" if weight != 1 else "") for part, weight in parts]
    name = name or "+".join(names) or NONE
    return Input(checked(read, place, name), adapters=tuple(parts))


def _is_glob(read: ReadPlan, word: str) -> bool:
    return glob.has_magic(word) and not (read.folder / word).exists()


def _matching_paths(read: ReadPlan, pattern: str) -> list[Path]:
    return sorted(map(Path, glob.glob(str(read.folder / expanded(pattern)))))


def _matching_models(read: ReadPlan, pattern: str) -> Iterable[str | Path]:
    """The paths of models that match, else the names in the store that do."""
    paths = [path for path in _matching_paths(read, pattern) if _is_model(path)]
    if paths:
        return paths
    names = [name.display for name in Store().names()]
    return [name for name in names if fnmatchcase(name.lower(), pattern.lower())]


def _is_model(path: Path) -> bool:
    """Whether a path that matches is a model; what a batch has made of one is none."""
    if path.is_dir():
        return (path / "config.json").exists() and has_weights(path)
    part = part_of(path.name)
    if path.suffix != ".gguf" or (part is not None and part[1] != 1):
        return False
    whole = path if part is None else path.with_name(f"{part[0]}.gguf")
    return not (journal_of(path).exists() or journal_of(whole).exists())


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        return bool({*ADAPTER_FILES} & {*file_names(path)})
    return path.suffix == ".gguf"


def _name_of(model: Path | ModelName | HubModel) -> str:
    """What stands in the names of results for a model or an adapter."""
    if isinstance(model, ModelName):
        return model.display.removesuffix(":latest").replace("/", "-").replace(":", "-")
    if isinstance(model, HubModel):
        return Path(model.file).stem if model.file else model.repo.rpartition("/")[2]
    if model.is_dir():
        return model_name(model)
    part = part_of(model.name)
    return part[0] if part else model.stem


def checked(read: ReadPlan, place: Place, name: str) -> str:
    if "/" in name or "\0" in name or name in (".", ".."):
        raise read.document.fault(place, f"{name!r} is no name; leave / out")
    return name
