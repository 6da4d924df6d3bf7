"""Two models of one architecture, tensor by tensor: what a training has made of its base."""

from collections.abc import Iterator

from gpukit.adapters.base import Base
from gpukit.adapters.copies import stored_values
from gpukit.adapters.experts import ORDER
from gpukit.adapters.values import Values
from gpukit.errors import AdapterError, one_line
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.models.registry import Architecture, architecture_of_class


class Comparison:
    """The checkpoints `tuned` and `base`; `pairs` are their tensors, those of `tuned` first, in its
    order, without the parts of a model that are not text and copies of a tied embedding.

    `AdapterError` for models of two architectures, for a tensor that only one of them has or that
    has another shape or a dtype that is no float of torch; `CheckpointError` for an architecture
    that is unknown.
    """

    def __init__(self, tuned: Checkpoint, base: Checkpoint) -> None:
        self.tuned, self.base = tuned, base
        self._arch = self._architecture()
        self.model = Base.of(base)
        if self.model.tied != Base.of(tuned).tied:
            raise self.fail("the head of one is its embedding, that of the other is not")
        self.pairs = tuple(self._paired())

    def fail(self, what: str) -> AdapterError:
        return AdapterError(one_line(f"{self.tuned.folder} and {self.base.folder}: {what}"))

    def is_matrix(self, values: Values) -> bool:
        """Whether a tensor of the base is a weight that PEFT has a low-rank form for."""
        return len(values.shape) == 2 and values.name.endswith(".weight")

    def stacks(self) -> list[Values]:
        """The tensors of the base that hold one matrix of every expert of a layer."""
        names = tuple(f".experts.{parameter}" for parameter in ORDER)
        return [b for _, b in self.pairs if len(b.shape) == 3 and b.name.endswith(names)]

    def is_norm(self, values: Values) -> bool:
        """Whether a tensor of the base is a weight of one dimension, alone in its module."""
        module = values.name.removesuffix("weight")
        alone = sum(name.startswith(module) for name in self.base.tensors) == 1
        return len(values.shape) == 1 and values.name.endswith(".weight") and alone

    def is_vocabulary(self, values: Values) -> bool:
        """Whether a tensor of the base is its embedding or its head."""
        return values.name in (self.model.embedding, self.model.head)

    def _architecture(self) -> Architecture:
        both = (self.tuned, self.base)
        found = [architecture_of_class(m.config, str(m.folder / "config.json")) for m in both]
        one, other = (model.config["architectures"][0] for model in both)
        if one != other:
            raise self.fail(f"{one} and {other}; two models of one architecture are needed")
        return found[1]

    def _paired(self) -> Iterator[tuple[Values, Values]]:
        tuned, base = self._counted(self.tuned), self._counted(self.base)
        for name, values in tuned.items():
            other = base.pop(self.model.find(name) or "", None)
            if other is None:
                raise self.fail(f"{name} is in the first only; they are not of one base")
            if values.shape != other.shape:
                raise self.fail(
                    f"{name} has shape {list(values.shape)} in the first, {list(other.shape)} in "
                    "the second; they are not of one base, or the vocabulary was resized"
                )
            yield values, other
        if base:
            raise self.fail(f"{min(base)} is in the second only; they are not of one base")

    def _counted(self, checkpoint: Checkpoint) -> dict[str, Values]:
        known = stored_values(checkpoint)
        # A head that is the embedding may be there as a copy.
        copy = Base.of(checkpoint).head if self.model.tied else None
        names = [n for n in checkpoint.tensors if not self._arch.leaves_out(n) and n != copy]
        for name in names:
            if name not in known:
                tensor = checkpoint.tensors[name]
                raise AdapterError(
                    f"{tensor.path}: {name} is {tensor.dtype}; adapters are extracted from "
                    f"{', '.join(TORCH_TYPES)}"
                )
        return {name: known[name] for name in names}
