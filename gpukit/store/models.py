"""What a store tells of a model: the line that lists it, and what is opened of it."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.store import parameters
from gpukit.store.names import ModelName

if TYPE_CHECKING:
    from gpukit.store.modelfile import Message


@dataclass(frozen=True)
class StoredModel:
    """One line of `list`: the name, the id (12 hex digits), bytes of all layers, and the time of
    the last change."""

    name: ModelName
    digest: str
    size: int
    modified: datetime

    @property
    def id(self) -> str:
        return self.digest[:12]

    def as_json(self) -> dict[str, Any]:
        """Ollama's names; the size in bytes."""
        return {
            "name": self.name.display,
            "digest": self.digest,
            "size": self.size,
            "modified_at": self.modified.isoformat(),
        }


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can be opened: the path of its GGUF, or of a folder, and what its Modelfile set
    beside it, GGUF adapters in their order among it."""

    gguf: Path
    name: ModelName | None = None
    params: dict[str, parameters.Value] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    messages: "tuple[Message, ...]" = ()
    adapters: tuple[Path, ...] = ()
