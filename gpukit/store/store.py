"""A store of models on disk, laid out as Ollama's: reading it.

manifests/<host>/<namespace>/<model>/<tag>      which layers a model has
blobs/sha256-<64 hex>                           the layers
.gpukit/                                        scratch place and journals (see journal.py)
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gpukit.errors import ArgumentError, DiskError, NotFoundError, StoreError, did_you_mean
from gpukit.events import Report, Warned, ignore
from gpukit.formats.paths import expanded
from gpukit.formats.positioned import read_whole
from gpukit.store import blobs, config, gojson, parameters
from gpukit.store.manifest import Layer, Manifest, decode, mentioned
from gpukit.store.models import ResolvedModel, StoredModel
from gpukit.store.names import DEFAULT_TAG, ModelName

if TYPE_CHECKING:
    from gpukit.store.modelfile import Message

SCRATCH = ".gpukit"
# Registries take no larger ones.
MOST_OF_A_MANIFEST = 4 << 20


def default_root() -> Path:
    """`$GPUKIT_MODELS`, else `$OLLAMA_MODELS`, else `~/.ollama/models`.

    `StoreError` for a user without a home folder, as containers have them, and for a variable that
    names anything but a folder.
    """
    for variable in ("GPUKIT_MODELS", "OLLAMA_MODELS"):
        if value := os.environ.get(variable, "").strip(" \t'\""):
            root = expanded(value).absolute()
            if root.exists() and not root.is_dir():
                raise StoreError(f"{variable}: {root} is no folder; set it to one")
            return root
    try:
        return Path.home() / ".ollama" / "models"
    except RuntimeError:
        raise StoreError(
            "there is no home folder, so no place for models: set GPUKIT_MODELS to a folder"
        ) from None


class Store:
    """The store below `root`, by default `default_root()`, which is asked for when something is
    looked for in the store; a root that does not exist is an empty store."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @cached_property
    def root(self) -> Path:
        return self._root if self._root is not None else default_root()

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def scratch(self) -> Path:
        """The scratch place, on the disk that holds the blobs, so that a rename puts them there."""
        if self.blobs.exists() and self.root.stat().st_dev != self.blobs.stat().st_dev:
            return self.blobs / SCRATCH
        return self.root / SCRATCH

    def names(self) -> list[ModelName]:
        """The names of all manifests, sorted; files that are none are passed over."""
        found = []
        for path in _four_levels(self.manifests):
            relative = PurePosixPath(path.relative_to(self.manifests))
            if name := ModelName.from_path(relative):
                found.append(name)
        return sorted(found, key=str)

    def models(self, report: Report = ignore, prefix: str = "") -> list[StoredModel]:
        """The models whose names begin with `prefix` in any case, as `display` spells them, the
        latest first; of a manifest that cannot be read a warning tells."""
        found = []
        begins = prefix.lower()
        for name in (n for n in self.names() if n.display.lower().startswith(begins)):
            try:
                found.append(self.describe(name))
            except StoreError as error:
                if self.has(name):  # else somebody has removed it meanwhile
                    report(Warned(str(error)))
        return sorted(found, key=lambda model: model.modified, reverse=True)

    def describe(self, name: ModelName) -> StoredModel:
        """The line of `list` for one model; StoreError where it is missing or corrupt."""
        data = self.manifest_bytes(name)
        size = decode(data, f"model '{name.display}'").size
        try:
            modified = datetime.fromtimestamp(self.manifest_path(name).stat().st_mtime, UTC)
        except FileNotFoundError:  # somebody has removed it meanwhile
            raise self._not_there(name) from None
        return StoredModel(name, sha256(data).hexdigest(), size, modified)

    def _not_there(self, name: ModelName) -> NotFoundError:
        return NotFoundError(f"model '{name.display}' not found in {self.root}")

    def find(self, text: str) -> ModelName:
        """The name that `text` means here, spelled as the store spells it already."""
        return ModelName.parse(text).in_casing_of(self.names())

    def existing(self, text: str) -> ModelName:
        """The model that `text` names; NotFoundError where it is not in the store."""
        name = self.find(text)
        if not self.has(name):
            hint = self.similar(text) or ": `gpukit list` shows what is there"
            raise NotFoundError(f"model '{text}' not found in {self.root}{hint}")
        return name

    def similar(self, text: str) -> str:
        """`: did you mean 'x'?` where the name of a model is close to `text`, '' without one."""
        shown = [name.display for name in self.names()]
        bare = {name.removesuffix(f":{DEFAULT_TAG}"): name for name in shown}
        return did_you_mean(text, (*shown, *bare), bare)

    def has(self, name: ModelName) -> bool:
        return self.manifest_path(name).is_file()

    def manifest_path(self, name: ModelName) -> Path:
        return self.manifests / name.path

    def manifest_bytes(self, name: ModelName) -> bytes:
        """The manifest as it is on disk; StoreError where the model is not in the store."""
        try:
            return read_whole(self.manifest_path(name), MOST_OF_A_MANIFEST)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise self._not_there(name) from None
        except OSError as error:
            raise StoreError(
                f"model '{name.display}': {error.filename} cannot be read: {error.strerror}"
            ) from None

    def manifest(self, name: ModelName) -> Manifest:
        """The manifest of a model; StoreError where it is missing or corrupt."""
        return decode(self.manifest_bytes(name), f"model '{name.display}'")

    def holding(self, blob: Path) -> list[ModelName]:
        """The names of the models whose weights are the blob at `blob`, sorted; manifests that
        cannot be read are passed over."""
        if blob.parent != self.blobs:
            return []
        found = []
        for name in self.names():
            with suppress(StoreError, DiskError):
                layers = self.manifest(name).of("model")
                if any(blobs.blob_path(self.blobs, layer.digest) == blob for layer in layers):
                    found.append(name)
        return found

    def mentioned(self) -> set[str]:
        """Every digest that any manifest mentions; of a corrupt one, those still legible."""
        found: set[str] = set()
        for path in _four_levels(self.manifests):
            try:
                found |= mentioned(read_whole(path, MOST_OF_A_MANIFEST))
            except FileNotFoundError:
                continue
        return found

    def text(self, name: ModelName, layer: Layer) -> str:
        """The text of a small layer, checked against its digest."""
        return blobs.read(self.blobs, layer, name.display).decode("utf-8", "replace")

    def _json(self, name: ModelName, layer: Layer) -> Any:
        return gojson.decode(blobs.read(self.blobs, layer, name.display))

    def config(self, name: ModelName, manifest: Manifest) -> config.Config:
        """The config blob of a model; StoreError where it is missing or damaged."""
        if manifest.config is None:
            return config.Config()
        data = blobs.read(self.blobs, manifest.config, name.display)
        try:
            return config.decode(data)
        except ValueError as error:
            raise _unreadable(name, manifest.config, error) from None

    def params(self, name: ModelName, manifest: Manifest) -> dict[str, parameters.Value]:
        """The parameters that the model's layer sets, in their types; {} without one."""
        values: dict[str, parameters.Value] = {}
        for layer in manifest.of("params")[-1:]:
            try:
                values = parameters.from_json(self._json(name, layer))
            except (ValueError, ArgumentError) as error:
                raise _unreadable(name, layer, error) from None
        return values

    def messages(self, name: ModelName, manifest: Manifest) -> "tuple[Message, ...]":
        """The conversation that the model begins with; () without one."""
        # Reading Modelfiles and their templates takes time to import.
        from gpukit.store.modelfile import Message

        for layer in manifest.of("messages")[-1:]:
            try:
                turns = self._json(name, layer)
                return tuple(Message(str(t["role"]), str(t.get("content") or "")) for t in turns)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise _unreadable(name, layer, error) from None
        return ()

    def last_text(self, name: ModelName, manifest: Manifest, *kinds: str) -> str:
        """The text of the last layer of these kinds; '' without one."""
        return "".join(self.text(name, layer) for layer in manifest.of(*kinds)[-1:])

    def weights(self, name: ModelName, manifest: Manifest) -> Path:
        """The path of the model's GGUF; StoreError where there is none that gpukit can open."""
        layers = manifest.of("model")
        if layers:
            return blobs.check(self.blobs, layers[-1], name.display)
        if manifest.of("tensor"):
            raise StoreError(
                f"model '{name.display}' is stored as single tensors for Ollama's MLX engine, "
                "not as GGUF: create it again from the checkpoint or a .gguf file"
            )
        remote = self.config(name, manifest).remote_host
        where = f": it runs at {remote}" if remote else ""
        raise StoreError(f"model '{name.display}' has no weights in this store{where}")

    def adapters(self, name: ModelName, manifest: Manifest) -> tuple[Path, ...]:
        """The paths of the model's GGUF adapters; StoreError where one is missing or damaged."""
        return self.files(name, manifest, "adapter")

    def files(self, name: ModelName, manifest: Manifest, kind: str) -> tuple[Path, ...]:
        """The paths of the model's layers of a kind; StoreError where one is missing or damaged."""
        return tuple(blobs.check(self.blobs, layer, name.display) for layer in manifest.of(kind))

    def resolve(self, text: str) -> ResolvedModel:
        """The model that `text` names, opened; NotFoundError where it is not in the store."""
        return self.open(self.existing(text))

    def open(self, name: ModelName) -> ResolvedModel:
        """A model of the store with everything that its layers set."""
        manifest = self.manifest(name)
        return ResolvedModel(
            gguf=self.weights(name, manifest),
            name=name,
            params=self.params(name, manifest),
            system=self.last_text(name, manifest, "system"),
            template=self.last_text(name, manifest, "template", "prompt"),
            messages=self.messages(name, manifest),
            adapters=self.adapters(name, manifest),
        )


def _four_levels(manifests: Path) -> Iterator[Path]:
    """The files exactly four levels below: the only ones that are manifests."""

    def entries(folder: Path, level: int) -> Iterator[Path]:
        try:
            inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in inside:
            if level < 4 and entry.is_dir():
                yield from entries(folder / entry.name, level + 1)
            elif level == 4 and entry.is_file():
                yield folder / entry.name

    return entries(manifests, 1)


def _unreadable(name: ModelName, layer: Layer, error: Any) -> StoreError:
    return StoreError(
        f"model '{name.display}': the {layer.kind} blob {layer.digest} cannot be read: {error}: "
        "create or pull the model again"
    )
