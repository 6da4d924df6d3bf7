"""What verifying a file found: tensors, metadata, and lines about why they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gpukit.formats.gguf_fields import type_sizes
from gpukit.planning.again import FieldDifference
from gpukit.planning.totals import classes
from gpukit.store.hashing import CheckedModel


@dataclass(frozen=True)
class VerifiedTensor:
    """One tensor of the file: `blocks` were looked at, of which `different` are not those that the
    source gives, the first at byte `first` of its data. `problem` says what else is wrong, or why
    it could not be compared."""

    name: str
    type: str
    ne: tuple[int, ...]
    nbytes: int
    blocks: int = 0
    different: int = 0
    first: int | None = None
    problem: str | None = None

    @property
    def n_elements(self) -> int:
        return prod(self.ne)

    @property
    def equal(self) -> bool:
        return not self.different and self.problem is None

    @property
    def place(self) -> tuple[int, int] | None:
        """The block of the first byte that differs, and the byte's place in it."""
        return None if self.first is None else divmod(self.first, type_sizes()[self.type].nbytes)

    def as_json(self) -> dict[str, Any]:
        block, byte = self.place or (None, None)
        return {
            "name": self.name,
            "type": self.type,
            "blocks": self.blocks,
            "different_blocks": self.different,
            "first_block": block,
            "first_byte": byte,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class VerifiedClass:
    """The tensors of one class, which have one name but for the layer: how many are equal."""

    name: str
    types: tuple[str, ...]
    tensors: int
    nbytes: int
    equal: int
    blocks: int
    different_blocks: int

    def as_json(self) -> dict[str, Any]:
        return {
            "types": list(self.types),
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "equal": self.equal,
            "different": self.tensors - self.equal,
            "blocks": self.blocks,
            "different_blocks": self.different_blocks,
        }


@dataclass(frozen=True)
class Verification:
    """What verifying `path` found: its `tensors` in the order of the file and those of `source`
    that it lacks, the `metadata` that differs, and `notes` on why. `source` is None where the file
    was looked at alone; then a `problem` names the first scale of a tensor that is not finite. Of a
    model of the store that is looked at alone `stored` says whether its blobs are whole; where one
    is not, no tensor is looked at. `name` and `source_name` are what messages call the two: a model
    of the store by its name."""

    path: Path
    source: Path | None
    tensors: tuple[VerifiedTensor, ...]
    metadata: tuple[FieldDifference, ...]
    notes: tuple[str, ...]
    seconds: float
    stored: CheckedModel | None = None
    name: str = ""
    source_name: str = ""

    @property
    def equal(self) -> bool:
        """Whether the file is sound and, where there is a source, what that gives: every byte of
        every tensor, and every field of metadata that does more than describe."""
        whole = self.stored is None or self.stored.whole
        tensors = all(tensor.equal for tensor in self.tensors)
        return whole and tensors and not any(d.counts for d in self.metadata)

    @property
    def first(self) -> VerifiedTensor | None:
        """The first tensor that is not equal, in the order of the file."""
        return next((tensor for tensor in self.tensors if not tensor.equal), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def blocks(self) -> int:
        """How many blocks were looked at."""
        return sum(tensor.blocks for tensor in self.tensors)

    @property
    def different_blocks(self) -> int:
        return sum(tensor.different for tensor in self.tensors)

    @property
    def classes(self) -> tuple[VerifiedClass, ...]:
        """Sums by class, in the order in which they first stand in the file."""
        return tuple(
            _class(name, [self.tensors[i] for i in members])
            for name, members in classes(self.tensors).items()
        )

    def as_json(self) -> dict[str, Any]:
        """Everything as one JSON-ready document; sizes in bytes, times in seconds. Of tensors only
        those that are not equal."""
        first = self.first
        return {
            "path": str(self.path),
            "source": None if self.source is None else str(self.source),
            "equal": self.equal,
            "tensors": len(self.tensors),
            "nbytes": self.nbytes,
            "blocks": self.blocks,
            "different_blocks": self.different_blocks,
            "first": None if first is None else first.as_json(),
            "different": [tensor.as_json() for tensor in self.tensors if not tensor.equal],
            "classes": {row.name: row.as_json() for row in self.classes},
            "metadata": [difference.as_json() for difference in self.metadata],
            "notes": list(self.notes),
            "stored": None if self.stored is None else self.stored.as_json(),
            "seconds": round(self.seconds, 3),
        }


def _class(name: str, members: Sequence[VerifiedTensor]) -> VerifiedClass:
    return VerifiedClass(
        name,
        tuple(dict.fromkeys(tensor.type for tensor in members)),
        len(members),
        sum(tensor.nbytes for tensor in members),
        sum(tensor.equal for tensor in members),
        sum(tensor.blocks for tensor in members),
        sum(tensor.different for tensor in members),
    )
