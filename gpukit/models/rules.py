"""How a checkpoint becomes a GGUF: rules of import, and the plan that they make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpukit.formats.gguf_fields import Field
from gpukit.models.config import ModelConfig
from gpukit.models.views import View, rows_of

if TYPE_CHECKING:
    from gpukit.models.fp8 import Scales

# Rows -> as many in the layout of a GGUF; tensors of torch or arrays of NumPy.
Transform = Callable[[Any], Any]


# A tuple: a model with many experts has a million, and they are made many times as fast.
class Span(NamedTuple):
    """Neighbouring rows of a tensor of the checkpoint: `rows` of them from `first` on.

    `shape` is that of the whole tensor, outermost first. One of more dimensions is a stack of
    matrices; one of one dimension has rows of one value.
    """

    source: str
    shape: tuple[int, ...]
    first: int
    rows: int
    transform: Transform | None = None

    @classmethod
    def whole(
        cls,
        source: str,
        shape: tuple[int, ...],
        transform: Transform | None = None,
    ) -> "Span":
        """Every row of `source`."""
        return cls(source, shape, 0, rows_of(shape), transform)

    def changed_by(self, transform: Transform | None) -> "Span":
        """The span with `transform`, if it has none of its own."""
        return self if transform is None or self.transform else self._replace(transform=transform)


@dataclass(frozen=True)
class ColumnOrder:
    """A transform that leaves rows where they are: column i is the one that was `order[i]`."""

    order: tuple[int, ...]

    def __call__(self, rows: Any) -> Any:
        return rows[..., list(self.order)]

    def back(self, rows: Any) -> Any:
        """`rows` as they were."""
        return rows[..., np.argsort(self.order).tolist()]


@dataclass(frozen=True)
class Rule:
    """One tensor of the GGUF: its source, name, shape (outermost first), and transform.

    Most come from one tensor of the checkpoint, `source`. With `stack` there are so many, `source`
    with each number in the place of {}, which become one tensor of a dimension more. Otherwise
    `source` tells the spans, of any tensors and dtypes, that are put one behind the other: several
    tensors may become one and one may become several. `transform` is that of spans without their
    own.

    One that is not `required` may be missing, if the checkpoint has none of its sources, nor the
    tensor `beside`.

    It is written when the last source has been read; rules of one `group` wait for each other. Of
    several rules for one name the first whose sources are there is used.
    """

    source: str | tuple[Span, ...]
    name: str
    shape: tuple[int, ...]
    required: bool = True
    row_group: int = 1
    transform: Transform | None = None
    stack: int = 0
    group: str = ""
    beside: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.source, str):
            return
        found, wanted = sum(span.rows for span in self.source), rows_of(self.full_shape)
        if found != wanted or any(span.rows % self.row_group for span in self.source):
            raise ValueError(
                f"{self.name}: spans of {found} rows for {wanted}, in groups of {self.row_group}"
            )

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of what is written."""
        return (self.stack, *self.shape) if self.stack else self.shape

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """What is put one behind the other."""
        if not isinstance(self.source, str):
            return tuple(span.changed_by(self.transform) for span in self.source)
        return tuple(Span.whole(name, self.shape, self.transform) for name in self.sources)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The names in the checkpoint, each once."""
        if not isinstance(self.source, str):
            return tuple(dict.fromkeys(span.source for span in self.source))
        return tuple(self.source.format(i) for i in range(self.stack)) or (self.source,)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF to be: where its values come from and what happens to them.

    Its rows are those of `spans`, one behind the other; most tensors have one. `dtype` is what the
    checkpoint holds, as llama.cpp's converter sees it: BF16, F16, F32, which holds all, or blocks
    that are carried, MXFP4 or NVFP4.
    A span's transform takes a slab `[k * row_group, ne0]` and gives one of the same shape; tensors
    of one dimension are one row. Computed tensors have `values` (float32) and no spans.
    """

    name: str
    ne: tuple[int, ...]
    spans: tuple[Span, ...]
    dtype: str
    row_group: int = 1
    values: NDArray[np.float32] | None = None

    @property
    def n_elements(self) -> int:
        return prod(self.ne)


@dataclass(frozen=True)
class ImportPlan:
    """A checkpoint as a GGUF to be: metadata and tensors in the order of llama.cpp's converter.

    `fields` has general.file_type in its place with the value 0; see `with_file_type`. `scales`
    belong to weights in 8-bit floats; `views` are what spans name beside tensors of the checkpoint,
    `factors` by their names what the blocks of some are multiplied with; `left_out` are tensors of
    it that nothing uses; `warnings` are lines for the user.
    """

    config: ModelConfig
    fields: tuple[Field, ...]
    tensors: tuple[PlannedTensor, ...]
    scales: "Scales"
    views: Mapping[str, View]
    factors: Mapping[str, float]
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def auto_type(tensors: Sequence[PlannedTensor]) -> str:
    """The type that llama.cpp's converter chooses by itself: that of the first weight with two
    dimensions in BF16 or F16, F16 where there is none."""
    halves = (t.dtype for t in tensors if t.spans and len(t.ne) >= 2)
    return next((dtype for dtype in halves if dtype in ("BF16", "F16")), "F16")
