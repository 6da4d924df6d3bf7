"""Manifests: the file that lists a model's layers by digest."""

import re
from dataclasses import dataclass
from typing import Any

from gpukit.errors import StoreError
from gpukit.store import gojson

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_PREFIX = "application/vnd.ollama.image."

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def digest_hex(digest: str) -> str | None:
    """The 64 hex digits of `sha256:…` or `sha256-…`; None where it is no digest."""
    match = _DIGEST.fullmatch(digest)
    return match[1].lower() if match else None


def mentioned(data: bytes) -> set[str]:
    """Every digest that the bytes of a manifest mention, even of one that cannot be read."""
    text = data.decode("utf-8", "replace")
    return {f"sha256:{found[1].lower()}" for found in _DIGEST.finditer(text)}


@dataclass(frozen=True)
class Layer:
    """One blob of a model. `kind` is what follows the common prefix of the media type."""

    media_type: str
    digest: str
    size: int
    origin: str = ""
    name: str = ""

    @property
    def kind(self) -> str:
        return self.media_type.removeprefix(LAYER_PREFIX)

    def as_json(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.origin:
            keys["from"] = self.origin
        if self.name:
            keys["name"] = self.name
        return keys


@dataclass(frozen=True)
class Manifest:
    """A model: its config blob and its layers in order. Stubs of remote models have no config."""

    config: Layer | None
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of all blobs together."""
        return sum(layer.size for layer in self.blobs)

    @property
    def blobs(self) -> tuple[Layer, ...]:
        return (*self.layers, self.config) if self.config else self.layers

    def of(self, *kinds: str) -> list[Layer]:
        """The layers of these kinds, in their order."""
        return [layer for layer in self.layers if layer.kind in kinds]

    def encode(self) -> bytes:
        """The file's bytes as Ollama writes them."""
        assert self.config is not None, "only read manifests lack a config"
        return gojson.encode(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self.config.as_json(),
                "layers": [layer.as_json() for layer in self.layers] or None,
            }
        )


def decode(data: bytes, where: str) -> Manifest:
    """Read a manifest in any layout and key order; unknown keys are left aside.

    `where` names the manifest in errors. Raises StoreError where it is no manifest.
    """
    try:
        root = gojson.decode(data)
    except ValueError as error:
        raise _corrupt(where, f"no JSON ({error})") from None
    if not isinstance(root, dict):
        raise _corrupt(where, "not a JSON object")
    layers = [] if root.get("layers") is None else root["layers"]
    if not isinstance(layers, list):
        raise _corrupt(where, "`layers` is no list")
    config = {} if root.get("config") is None else root["config"]
    empty = isinstance(config, dict) and not config.get("digest")
    return Manifest(
        config=None if empty else _layer(config, where, "config"),
        layers=tuple(_layer(layer, where, f"layer {i}") for i, layer in enumerate(layers)),
    )


def _layer(value: Any, where: str, which: str) -> Layer:
    if not isinstance(value, dict):
        raise _corrupt(where, f"{which} is no object")
    digest, size, media_type = value.get("digest"), value.get("size"), value.get("mediaType")
    if not isinstance(digest, str) or not (hex_digits := digest_hex(digest)):
        raise _corrupt(where, f"{which} has the digest {str(digest)[:80]!r}, no sha256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise _corrupt(where, f"{which} has the size {str(size)[:40]!r}")
    if not isinstance(media_type, str):
        raise _corrupt(where, f"{which} has no media type")
    origin, name = value.get("from"), value.get("name")
    return Layer(
        media_type=media_type,
        digest=f"sha256:{hex_digits}",
        size=size,
        origin=origin if isinstance(origin, str) else "",
        name=name if isinstance(name, str) else "",
    )


def _corrupt(where: str, what: str) -> StoreError:
    return StoreError(
        f"{where}: the manifest is corrupt: {what}; create or pull the model again, or remove it"
    )
