"""The config blob: what `list` and `show` say of a model without opening its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gpukit.store import gojson


@dataclass(frozen=True)
class Config:
    """The keys of the blob in its order. Empty optional ones are left out of it."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] = ()
    model_type: str = ""
    file_type: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    remote_model: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0
    base_name: str = ""
    architecture: str = "amd64"
    os: str = "linux"

    def encode(self) -> bytes:
        """The blob's bytes as Ollama writes them."""
        keys: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value or item.name in _ALWAYS:
                keys[item.name] = list(value) or None if isinstance(value, tuple) else value
        return gojson.encode(keys)


_ALWAYS = frozenset(
    ("model_format", "model_family", "model_families", "model_type", "file_type", "architecture",
     "os")
)  # fmt: skip


def decode(data: bytes) -> Config:
    """Read a config blob; unknown keys and values of the wrong kind are left aside.

    Raises ValueError where `data` is no JSON object.
    """
    root = gojson.decode(data)
    if not isinstance(root, Mapping):
        raise ValueError("not a JSON object")
    kept: dict[str, Any] = {}
    for item in fields(Config):
        value = root.get(item.name)
        if isinstance(item.default, tuple) and isinstance(value, list):
            kept[item.name] = tuple(text for text in value if isinstance(text, str))
        elif type(value) is type(item.default) and not (isinstance(value, int) and value >= 2**63):
            kept[item.name] = value
    return Config(**kept)


def human_count(n: int) -> str:
    """A number of parameters as Ollama writes it: `4.25M`, `8B`, `70.6B`, `512`."""
    if n >= 10**9:
        return f"{n // 10**9}B" if n % 10**9 == 0 else f"{n / 1e9:.1f}B"
    if n >= 10**6:
        return f"{n // 10**6}M" if n % 10**6 == 0 else f"{n / 1e6:.2f}M"
    if n >= 10**3:
        return f"{n / 1e3:.0f}K"
    return str(n)
