"""What every architecture shares: its configuration, the plan of an import, and the registry."""

import difflib
import importlib.abc
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpukit.errors import CheckpointError, GGUFError
from gpukit.events import Report, ignore
from gpukit.formats.gguf_fields import Field
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.config import ModelConfig
from gpukit.models.rules import PlannedTensor, Rule
from gpukit.models.sizes import restore_sizes
from gpukit.models.style import Style
from gpukit.models.tables import SKIPPED
from gpukit.models.views import View

if TYPE_CHECKING:
    from gpukit.models.decoder import Decoder
    from gpukit.models.weights import Weights


# What to do about a class that has no file here.
BY_CONVERTER = (
    "llama.cpp's converter may know it: gpukit quantize --converter DIR, a checkout of llama.cpp "
    "(adapters first: gpukit merge BASE FOLDER --adapter DIR)"
)


class Vocabulary(Protocol):
    """Folder and config.json -> every tokenizer.* field, in the converter's order; `pre` names the
    pre-tokenizer of a byte-level BPE that is not recognised; `report` is told what is left out."""

    def __call__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        pre: str | None = None,
        report: Report = ignore,
    ) -> list[Field]: ...


@dataclass(frozen=True)
class Architecture:
    """One architecture: how it is imported and how it is read back.

    read      config.json -> ModelConfig, CheckpointError where a value makes no sense
    rules     the tensors that a checkpoint of this configuration has
    fields    the architecture's own metadata, general.file_type included
    folder_fields  metadata behind them, from other files of the folder
    first_fields  what the converter writes before general.type
    vocabulary  the vocabulary of a folder as metadata
    style     how its decoder does what all of them do
    restoring  metadata and name -> ModelConfig
    building  configuration, weights of a file and style -> a decoder that runs; `assemble` without
    computed  tensors that no checkpoint holds, such as RoPE factors
    skipped   endings of the names of tensors that are left out: copies, and what is computed anew
    skipped_parts  beginnings of names: the parts of a larger model that are not text
    renamed   the name of a checkpoint's tensor -> the one that `rules` have
    views     the tensors of a checkpoint -> what some of them are taken for, under names of `rules`

    Several classes may become one GGUF architecture; what makes the decoder is then the same.
    """

    name: str
    classes: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], ModelConfig]
    rules: Callable[[ModelConfig], Sequence[Rule]]
    fields: Callable[[ModelConfig], Sequence[Field]]
    vocabulary: Vocabulary
    folder_fields: Callable[[Path], Sequence[Field]] = lambda _folder: ()
    style: Style = field(default_factory=Style)
    restoring: Callable[[Mapping[str, Field], str], ModelConfig] = restore_sizes
    building: "Callable[[ModelConfig, Weights, Style], Decoder] | None" = None
    computed: Callable[[ModelConfig], Sequence[PlannedTensor]] = lambda _config: ()
    first_fields: Callable[[ModelConfig], Sequence[Field]] = lambda _config: ()
    skipped: tuple[str, ...] = SKIPPED
    skipped_parts: tuple[str, ...] = ()
    renamed: Callable[[str], str] = str
    views: Callable[[Sequence[StoredTensor]], Sequence[View]] = lambda _tensors: ()

    def restore(self, found: Mapping[str, Field]) -> ModelConfig:
        """The configuration that a GGUF's metadata describes; `GGUFError` for what is missing,
        makes no sense, or cannot be run."""
        return self.restoring(found, self.name)

    def build(self, config: ModelConfig, weights: "Weights") -> "Decoder":
        """The decoder that runs; `GGUFError` for weights that are missing or of another shape."""
        # Who only imports a model needs no torch.
        from gpukit.models.assemble import assemble

        return (self.building or assemble)(config, weights, self.style)

    def leaves_out(self, name: str) -> bool:
        """Whether the tensor `name` of a checkpoint has no place in a GGUF."""
        return name.endswith(self.skipped) or name.startswith(self.skipped_parts)


@cache
def architectures() -> tuple[Architecture, ...]:
    """Every architecture, collected from the modules of this package."""
    from gpukit import models

    found: list[Architecture] = []
    for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        if _names_architectures(module.name):
            found.extend(getattr(importlib.import_module(module.name), "ARCHITECTURES", ()))
    return tuple(found)


def _names_architectures(name: str) -> bool:
    """Whether the code of module `name` has ARCHITECTURES, seen without running it: what runs a
    model imports torch, and who only imports one needs none."""
    spec = importlib.util.find_spec(name)
    if spec is None or not isinstance(spec.loader, importlib.abc.InspectLoader):
        return True
    code = spec.loader.get_code(name)
    return code is None or "ARCHITECTURES" in code.co_names


def architecture_of_class(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a config.json; `CheckpointError` names what is known and what is near."""
    classes = config.get("architectures")
    if classes in (None, []):
        raise CheckpointError(f"{where}: no architectures; a model's config.json names its class")
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        shown = f"the text {classes[:40]!r}" if isinstance(classes, str) else str(classes)[:40]
        raise CheckpointError(
            f'{where}: architectures is {shown}; a list is needed, as ["LlamaForCausalLM"]'
        )
    known = {name: arch for arch in architectures() for name in arch.classes}
    if classes[0] in known:
        return known[classes[0]]
    near = difflib.get_close_matches(classes[0], known, n=1)
    hint = f"; near: {near[0]}" if near else ""
    raise CheckpointError(
        f"{where}: unknown architecture {classes[0]!r}; known: {', '.join(sorted(known))}{hint}; "
        f"{BY_CONVERTER}"
    )


def architecture_of(name: str | None, where: str) -> Architecture:
    """The architecture that a GGUF names; `GGUFError` lists the known ones."""
    for arch in architectures():
        if arch.name == name:
            return arch
    known = ", ".join(sorted({arch.name for arch in architectures()}))
    raise GGUFError(f"{where}: cannot run architecture {name!r}; known: {known}")
