"""Collects what an adapter does to its base, and refuses what does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from gpukit.adapters.base import Base
from gpukit.adapters.delta import Added, Delta, LowRank, Replaced, ReplacedRows
from gpukit.adapters.places import Place, places, unknown
from gpukit.adapters.values import Values
from gpukit.errors import AdapterError, one_line
from gpukit.formats.floats import float32

# Modules of GPT-2 and its kin, whose weights are stored as [in, out].
TRANSPOSED = ("c_attn", "c_proj", "c_fc", "q_attn")
OTHER_BASE = "this adapter was made for another base"


@dataclass
class Fit:
    """The records for the tensors of `base` of the adapter at `path`, as they are found; with
    `invocation` it works only behind those tokens."""

    path: Path
    base: Base
    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    invocation: tuple[int, ...] = ()

    def fail(self, what: str) -> AdapterError:
        return AdapterError(one_line(f"{self.path}: {what}"))

    def warn(self, what: str) -> None:
        self.warnings.append(one_line(f"{self.path}: {what}"))

    def add(self, tensor: str, record: Delta) -> None:
        """Note what is done to `tensor`; `AdapterError` for a scale that float32 does not hold."""
        if isinstance(record, LowRank | Added) and not isfinite(float32(record.scale)):
            raise self.fail(
                f"{tensor}: a scale of {record.scale:g} (alpha / rank); it is used as float32, "
                "which has numbers up to 3.4e+38"
            )
        self.deltas.setdefault(tensor, []).append(record)

    def low_rank(
        self,
        module: str,
        b: Values,
        a: Values,
        scale: float,
        *,
        magnitude: Values | None = None,
        transposed: bool = False,
    ) -> None:
        """`module` + scale * B·A, `b` `[rows, rank]` and `a` `[rank, width]`; `magnitude` is a
        length a row. With `transposed` the base may have the module as `[width, rows]`."""
        self.pair(module, b, a)
        found = places(self.base, module)
        if not found:
            raise self.fail(f"{module}: {unknown(self.base, module)}; {OTHER_BASE}")
        rows, width = b.shape[0], a.shape[1]
        if magnitude is not None and magnitude.shape != (rows,):
            raise self.fail(
                f"{magnitude.name} has shape {list(magnitude.shape)}, {[rows]} is needed"
            )
        if len(found) == 1 and transposed and self._is_turned(module, found[0], rows, width):
            record = LowRank(a.t, b.t, scale, magnitude=magnitude, by_column=magnitude is not None)
            self.add(found[0].tensor, record)
            return
        if len(found) == 1 and found[0].tensor in (self.base.embedding, self.base.head):
            found = [replace(found[0], rows=self.shape(found[0].tensor)[0])]
        wanted = sum(place.rows for place in found), found[0].width
        if (rows, width) != wanted:
            raise self.fail(
                f"{module}: B·A is [{rows}, {width}], {found[0].tensor} of the base has "
                f"{list(wanted)}; {OTHER_BASE}"
            )
        for place in found:
            self.placed(place, b, a, scale, magnitude)

    def pair(self, module: str, b: Values, a: Values) -> None:
        """`AdapterError` where B and A are no two matrices of one rank."""
        for part in (a, b):
            if len(part.shape) != 2:
                kind = "a convolution" if len(part.shape) > 2 else "no matrix"
                raise self.fail(
                    f"{part.name} has shape {list(part.shape)}: {kind} cannot be merged"
                )
        if a.shape[0] != b.shape[1]:
            raise self.fail(f"{module}: A has rank {a.shape[0]}, B has {b.shape[1]}")
        if not a.shape[0]:
            raise self.fail(f"{module}: rank 0; the adapter was saved without its weights")

    def _is_turned(self, module: str, place: Place, rows: int, width: int) -> bool:
        """Whether the base has `module` as [in, out]; a square one tells it by its name."""
        square = rows == width and not module.endswith(TRANSPOSED)
        return not square and (place.rows, place.width) == (width, rows)

    def placed(
        self, place: Place, b: Values, a: Values, scale: float, magnitude: Values | None = None
    ) -> None:
        """The part of B·A that belongs to `place`."""
        part = b.rows(place.begin, place.rows)
        lengths = None if magnitude is None else magnitude.rows(place.begin, place.rows)
        self.add(place.tensor, LowRank(part, a, scale, place.first, lengths))

    def replaced(self, name: str, values: Values) -> None:
        """The tensor `name` gives way to `values`, whose rows may be more where they are tokens."""
        tensor = self.base.find(name)
        if tensor is None:
            module = name.rpartition(".")[0]
            raise self.fail(f"{name}: {unknown(self.base, module)}, or no place in it for that")
        if not self._alike(tensor, values.shape):
            raise self.fail(
                f"{name} has shape {list(values.shape)}, the base {list(self.base.tensors[tensor])}"
                f"; {OTHER_BASE}"
            )
        self.add(tensor, Replaced(values))

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of the base, or of what has taken its place."""
        whole = [r for r in self.deltas.get(tensor, ()) if isinstance(r, Replaced)]
        return whole[0].values.shape if whole else self.base.tensors[tensor]

    def _alike(self, tensor: str, shape: tuple[int, ...]) -> bool:
        known = self.base.tensors[tensor]
        resizable = tensor in (self.base.embedding, self.base.head) and len(shape) == 2
        return shape == known or (resizable and shape[0] > 0 and shape[1:] == known[1:])

    def rows(self, module: str, indices: Sequence[int], values: Values) -> None:
        """The rows `indices` of `module` give way to those of `values`."""
        found = places(self.base, module)
        if len(found) != 1:
            raise self.fail(f"{module}: {unknown(self.base, module)}; {OTHER_BASE}")
        place = found[0]
        if values.shape != (len(indices), place.width):
            raise self.fail(
                f"{values.name} has shape {list(values.shape)}, {len(indices)} tokens of width "
                f"{place.width} are listed in adapter_config.json"
            )
        if len(set(indices)) < len(indices):
            raise self.fail(f"{module}: a token stands twice in trainable_token_indices")
        most = self.shape(place.tensor)[0]
        if strange := [index for index in indices if not 0 <= index < most]:
            raise self.fail(
                f"{module}: token {strange[0]} of trainable_token_indices; there are {most}"
            )
        self.add(place.tensor, ReplacedRows(tuple(indices), values))

    def bias(self, module: str, values: Values, scale: float) -> None:
        """scale * `values` is added to the bias of `module`, wherever it is in the base."""
        found = places(self.base, module)
        names = [self.base.find(p.tensor.removesuffix(".weight") + ".bias") for p in found]
        if not found or None in names:
            raise self.fail(
                f"{module}: the adapter trained a bias (lora_bias), and the base has no "
                f"{module}.bias that could take it; merge it with a base that has one"
            )
        if values.shape != (sum(place.rows for place in found),):
            raise self.fail(f"{values.name} has shape {list(values.shape)}; {OTHER_BASE}")
        for place, name in zip(found, names, strict=True):
            assert name is not None
            self.add(name, Added(values.rows(place.begin, place.rows), scale, place.first))
