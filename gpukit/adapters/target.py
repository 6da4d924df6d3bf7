"""The model that adapters are for, as they see it and as the GGUF that it is or becomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpukit.adapters.base import Base
from gpukit.adapters.moved import Made
from gpukit.formats.checkpoint import Checkpoint


@dataclass(frozen=True)
class Target:
    """A model: `base` has the tensors that adapters name, `tensors` say how those of a GGUF of
    `architecture` are made of them, and `shapes` are theirs, outermost first. The numbers of a
    model folder are in `checkpoint`."""

    base: Base
    architecture: str
    tensors: Sequence[Made]
    shapes: Mapping[str, tuple[int, ...]]
    checkpoint: Checkpoint | None = None
