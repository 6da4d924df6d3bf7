"""Whether the blobs of models are what their digests say: all of them read and hashed again."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.errors import StoreError
from gpukit.events import Report, Step, ignore
from gpukit.formats.positioned import open_to_read
from gpukit.store.blobs import blob_path, hashed
from gpukit.store.manifest import Layer, Manifest
from gpukit.store.names import ModelName
from gpukit.store.store import Store

TITLE = "hashing blobs"


@dataclass(frozen=True)
class CheckedModel:
    """A model whose blobs were hashed: how many it has, their bytes, and a line for everything that
    is not as its manifest says."""

    name: ModelName
    blobs: int
    nbytes: int
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The fields; the size in bytes."""
        return {
            "name": self.name.display,
            "whole": self.whole,
            "blobs": self.blobs,
            "size": self.nbytes,
            "problems": list(self.problems),
        }


def check_models(
    store: Store, names: Iterable[ModelName], report: Report = ignore
) -> tuple[CheckedModel, ...]:
    """Each of the models, its blobs hashed again, one that several have once; those that somebody
    removes meanwhile are left out, and the store is not changed."""
    hashes = _Hashes(store.blobs, report)
    asked = sorted(names, key=str)
    for name in asked:
        if (manifest := _read(store, name)[0]) is not None:
            hashes.expect(manifest.blobs)
    found = (_checked(store, name, hashes) for name in asked)
    return tuple(model for model in found if model is not None)


def _checked(store: Store, name: ModelName, hashes: "_Hashes") -> CheckedModel | None:
    while True:
        stamp = _stamp(store, name)
        manifest, problem = _read(store, name)
        if manifest is None:
            checked = CheckedModel(name, 0, 0, (problem,))
        else:
            layers = list({layer.digest: layer for layer in manifest.blobs}.values())
            problems = (hashes.problem(layer) for layer in layers)
            lines = tuple(line for line in problems if line)
            checked = CheckedModel(name, len(layers), sum(each.size for each in layers), lines)
        if checked.whole or stamp == (now := _stamp(store, name)) is not None:
            return checked
        if now is None:
            return None
        # Replaced meanwhile: what was missing may be of the old one only.
        hashes.forget()


def _stamp(store: Store, name: ModelName) -> tuple[int, int] | None:
    """What tells the manifest's file from one that takes its place; None where there is none."""
    with suppress(OSError):
        facts = store.manifest_path(name).stat()
        return facts.st_ino, facts.st_mtime_ns
    return None


def _read(store: Store, name: ModelName) -> tuple[Manifest | None, str]:
    """The manifest, or why there is none."""
    try:
        return store.manifest(name), ""
    except StoreError as error:
        return None, str(error)


class _Hashes:
    """What is wrong with blobs, found once for each."""

    def __init__(self, folder: Path, report: Report) -> None:
        self._folder = folder
        self._report = report
        self._found: dict[tuple[str, int], str] = {}
        self._sizes: dict[str, int] = {}
        self._done = 0

    def expect(self, layers: Iterable[Layer]) -> None:
        """Count them among what is to be done."""
        self._sizes.update({layer.digest: layer.size for layer in layers})

    def forget(self) -> None:
        """Look again at those that were wrong."""
        self._found = {key: line for key, line in self._found.items() if not line}

    def problem(self, layer: Layer) -> str:
        """What is wrong with the blob of `layer`; '' where it is whole."""
        key = (layer.digest, layer.size)
        if key not in self._found:
            self.expect([layer])
            self._found[key] = self._look(layer)
        return self._found[key]

    def _look(self, layer: Layer) -> str:
        path = blob_path(self._folder, layer.digest)
        what = f"{layer.kind} blob {layer.digest}" if layer.kind else f"blob {layer.digest}"
        try:
            size = path.stat().st_size
            if size != layer.size:
                return f"{what} has {size} bytes, the manifest says {layer.size}: {path}"
            actual = self._hash(path)
        except FileNotFoundError:
            return f"{what} is missing: {path}"
        except OSError as error:
            return f"{what} cannot be read: {path}: {error.strerror}"
        return "" if actual == layer.digest else f"{what} hashes to {actual}: {path}"

    def _hash(self, path: Path) -> str:
        def advance(count: int) -> None:
            self._done += count
            self._report(Step(TITLE, self._done, max(sum(self._sizes.values()), self._done)))

        fd = open_to_read(path)
        try:
            return hashed(fd, advance)[0]
        finally:
            os.close(fd)
