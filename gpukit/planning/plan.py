"""What a model becomes, tensor by tensor: the records of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import FileType
from gpukit.formats.gguf_fields import FLOATS, Field, TensorSpec
from gpukit.formats.gguf_split import part_fields
from gpukit.formats.gguf_writer import plan_layout
from gpukit.formats.imatrix import Floats, Imatrix
from gpukit.planning.overrides import Overrides
from gpukit.planning.totals import TypeTotal, type_totals

# Of F32, the widest type.
MOST_BITS = 32


@dataclass(frozen=True)
class Options:
    """What a user may ask for besides a file type.

    `split_max_size` is in bytes; `keep_split` gives as many files as the source has. `target_bpw`
    (bits per weight) or `target_size` (bytes of the file) choose the types that lose least within
    it, `like` those of another GGUF; each takes the place of a file type. Without `carry` a folder
    that is converted becomes floats as a whole, blocks that it has too. `mtp` has of a model folder
    the layers alone that guess further tokens, False all but those.
    """

    overrides: Overrides | None = None
    imatrix: Imatrix | None = None
    allow_requantize: bool = False
    keep_split: bool = False
    split_max_size: int | None = None
    target_bpw: float | None = None
    target_size: int | None = None
    like: Path | None = None
    carry: bool = True
    mtp: bool | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.keep_split and self.split_max_size:
            raise ArgumentError("--keep-split and --split-max-size exclude each other; give one")

    @property
    def target(self) -> str | None:
        """The option that says how much there may be, with its value; None without."""
        if self.target_bpw is not None:
            return f"--target-bpw {self.target_bpw:g}"
        return f"--target-size {self.target_size}" if self.target_size is not None else None

    @property
    def instead(self) -> str | None:
        """The option that takes the place of a file type; None where there is none."""
        return self.target or (f"--like {self.like}" if self.like is not None else None)

    def _check_types(self) -> None:
        """`ArgumentError` for several options that decide the same."""
        given = [
            name
            for name, value in (
                ("--target-bpw", self.target_bpw),
                ("--target-size", self.target_size),
                ("--like", self.like),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise ArgumentError(f"{given[0]} and {given[1]} exclude each other; give one")
        if given and self.overrides is not None and self.overrides.pure:
            raise ArgumentError(f"{given[0]} and --pure exclude each other; give one")
        if self.like is not None and self.overrides is not None:
            other = (self.overrides.options() or ["options for types"])[0]
            raise ArgumentError(f"--like and {other} exclude each other; give one")
        bits = self.target_bpw
        if bits is not None and not 0 < bits <= MOST_BITS:
            raise ArgumentError(
                f"--target-bpw {bits:g}: above 0 and up to {MOST_BITS} bits per weight are possible"
            )


@dataclass(frozen=True)
class PlannedOutput:
    """One tensor on its way: its place in the source, what it is and what it becomes.

    `importance` is that of its columns, float32 `[ne0]`, or `[experts * ne0]`; `wanted` is the type
    that its mix has for it, another than `spec.type` where blocks do not fit the rows.
    """

    index: int
    spec: TensorSpec
    source_type: str
    importance: Floats | None = None
    wanted: str = ""

    @property
    def is_carried(self) -> bool:
        """Whether it is blocks that keep their type."""
        return self.spec.type == self.source_type and self.source_type not in FLOATS


@dataclass(frozen=True)
class QuantizePlan:
    """Everything that will be written: metadata, tensors in file order, the size in bytes.

    `size` is that of all files, `parts` the number of tensors in each; `warnings` are lines for the
    user, `notes` those that say how types were chosen.
    """

    file_type: FileType | None
    title: str
    fields: tuple[Field, ...]
    outputs: tuple[PlannedOutput, ...]
    parts: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size: int = field(init=False)

    def __post_init__(self) -> None:
        specs, size, begin = self.specs, 0, 0
        for number, count in enumerate(self.parts):
            fields: Sequence[Field] = self.fields
            if len(self.parts) > 1:
                fields = part_fields(fields, number, len(self.parts), len(specs))
            size += plan_layout(fields, specs[begin : begin + count]).size
            begin += count
        object.__setattr__(self, "size", size)

    @property
    def specs(self) -> list[TensorSpec]:
        return [output.spec for output in self.outputs]

    def get(self, key: str) -> Any:
        """The value of a metadata field that will be written, None where there is none."""
        return next((field.value for field in self.fields if field.key == key), None)

    def totals(self) -> list[TypeTotal]:
        return type_totals(self.specs)

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON-ready document; sizes in bytes."""
        return {
            "file_type": self.file_type.name if self.file_type else None,
            "size": self.size,
            "files": len(self.parts),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "tensors": [
                {
                    "name": o.spec.name,
                    "shape": list(o.spec.ne),
                    "from": o.source_type,
                    "to": o.spec.type,
                    "nbytes": o.spec.nbytes,
                    "importance": o.importance is not None,
                }
                for o in self.outputs
            ],
        }
