"""How a checkpoint becomes a GGUF: rules of import, and the plan that they make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from gpukit.formats.gguf_fields import Field
from gpukit.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from gpukit.models.fp8 import Scales


@dataclass(frozen=True)
class Rule:
    """One tensor of the checkpoint: its GGUF name, shape (outermost first), and transform.

    With `stack` there are so many, `source` with each number in the place of {}, which become one
    tensor of a dimension more. It is written when the last of them has been read; rules of one
    `group` wait for each other.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    required: bool = True
    row_group: int = 1
    transform: "Callable[[Tensor], Tensor] | None" = None
    stack: int = 0
    group: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in the checkpoint, in the order of the stack."""
        return tuple(self.source.format(i) for i in range(self.stack)) or (self.source,)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF to be: where its values come from and what happens to them.

    `sources` are stacked, each as many rows as the others; most tensors have one. `dtype` is what
    the checkpoint holds, as llama.cpp's converter sees it: BF16, F16 or F32.
    `transform` takes a slab `[k * row_group, ne0]` and gives one of the same shape; tensors of one
    dimension are one row. Computed tensors have `values` (float32) and no `sources`.
    """

    name: str
    ne: tuple[int, ...]
    sources: tuple[str, ...]
    dtype: str
    row_group: int = 1
    transform: "Callable[[Tensor], Tensor] | None" = None
    values: "Tensor | None" = None

    @property
    def n_elements(self) -> int:
        return prod(self.ne)


@dataclass(frozen=True)
class ImportPlan:
    """A checkpoint as a GGUF to be: metadata and tensors in the order of llama.cpp's converter.

    `fields` has general.file_type in its place with the value 0; see `with_file_type`. `scales`
    belong to weights in 8-bit floats; `left_out` are tensors of the checkpoint that nothing uses;
    `warnings` are lines for the user.
    """

    config: ModelConfig
    fields: tuple[Field, ...]
    tensors: tuple[PlannedTensor, ...]
    scales: "Scales"
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def auto_type(tensors: Sequence[PlannedTensor]) -> str:
    """The type that llama.cpp's converter chooses by itself: that of the first weight with two
    dimensions in BF16 or F16, F16 where there is none."""
    halves = (t.dtype for t in tensors if t.sources and len(t.ne) >= 2)
    return next((dtype for dtype in halves if dtype in ("BF16", "F16")), "F16")
