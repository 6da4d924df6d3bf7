"""What a source becomes where a file says which type each tensor has: the plan of a comparison.

Types are those of the file, whatever mix or option chose them; names, shapes and metadata are what
a conversion of the source gives.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpukit.errors import FormatError
from gpukit.formats.file_types import FILE_TYPE
from gpukit.formats.gguf_fields import FLOATS, Field, TensorSpec, ValueType, u32
from gpukit.formats.gguf_writer import value_bytes
from gpukit.formats.imatrix import Imatrix
from gpukit.models.unused import unused_of
from gpukit.planning.importance import importance_of
from gpukit.planning.plan import PlannedOutput
from gpukit.planning.planner import VERSION_KEY, decoded_with
from gpukit.sources.base import Source
from gpukit_kernels import type_facts

ARCHITECTURE = "general.architecture"
# What tells how a file was made or is cut into parts; the source says nothing about it.
OF_THE_MAKING = ("gpukit.", "quantize.", "split.")
NOT_COMPARED = ("general.alignment", VERSION_KEY, FILE_TYPE)
# Of general.*, which only describes, what computing depends on.
COMPUTED_WITH = (ARCHITECTURE, "general.type", FILE_TYPE)
SAMPLING = "general.sampling."


@dataclass(frozen=True)
class Again:
    """The tensors of a file that the source gives, to be encoded again; `refused` says of others,
    by name, why they cannot be compared, `missing` are those of the source without a place."""

    outputs: tuple[PlannedOutput, ...]
    refused: Mapping[str, str]
    missing: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FieldDifference:
    """A metadata field with its value in the file and that which the source gives, None where there
    is none. `counts` is false where it only describes, as a name does."""

    key: str
    found: Any
    expected: Any
    counts: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "found": self.found,
            "expected": self.expected,
            "counts": self.counts,
        }


def plan_again(source: Source, tensors: Sequence[TensorSpec], imatrix: Imatrix | None) -> Again:
    """How the `tensors` of a file come of `source`; `ArgumentError` for an importance matrix of
    another model."""
    places = {tensor.name: index for index, tensor in enumerate(source.tensors)}
    outputs, refused, unused = [], {}, unused_of(source.get)
    for tensor in tensors:
        index = places.get(tensor.name)
        why = _why_not(source, index, tensor)
        if why or index is None:
            refused[tensor.name] = why
            continue
        spec = TensorSpec(tensor.name, tensor.ne, tensor.type)
        stored = source.stored_type(index)
        importance = None
        if imatrix is not None and spec.type != stored:
            importance = importance_of(spec, imatrix, unused)
        outputs.append(PlannedOutput(index, spec, stored, importance))
    there = {tensor.name for tensor in tensors}
    there |= {source.tensors[index].name for index in decoded_with(source, outputs)}
    missing = [TensorSpec(t.name, t.ne, t.type) for t in source.tensors if t.name not in there]
    return Again(tuple(outputs), refused, tuple(missing))


def _why_not(source: Source, index: int | None, tensor: TensorSpec) -> str:
    """Why a tensor of the file cannot be encoded again; '' where it can."""
    if index is None:
        return "not in the source"
    shape = source.tensors[index].ne
    if trimmed(shape) != trimmed(tensor.ne):
        return f"shape {_shape(tensor.ne)}, {_shape(shape)} in the source"
    kind, stored = tensor.type, source.stored_type(index)
    if source.passes(index, kind):
        return ""
    facts = type_facts().get(kind)
    if facts is None or not facts.encodable:
        return f"{kind} is a type that gpukit does not write"
    if stored not in FLOATS and stored not in type_facts():
        return f"{stored} in the source, which gpukit cannot decode"
    return ""


def trimmed(ne: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions without ones at the end, which some writers leave out."""
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return ne


def _shape(ne: tuple[int, ...]) -> str:
    return " x ".join(map(str, ne))


def check_same_model(
    called: tuple[str, str],
    fields: Mapping[str, Field],
    tensors: Sequence[TensorSpec],
    source: Source,
) -> None:
    """`FormatError` for a file whose architecture or most of whose tensors are not those of
    `source`: there is nothing to compare. Messages call the two as `called` says."""
    name, theirs_name = called
    own = fields[ARCHITECTURE].value if ARCHITECTURE in fields else None
    theirs = source.get(ARCHITECTURE)
    if own != theirs:
        raise FormatError(
            f"{name}: another model than {theirs_name}: its architecture is {own}, that of the "
            f"source {theirs}"
        )
    shapes = {tensor.name: trimmed(tensor.ne) for tensor in source.tensors}
    other = [t for t in tensors if shapes.get(t.name) != trimmed(t.ne)]
    # Scales beside blocks may have gone into the values.
    beside = {place for index in range(len(source.tensors)) for place in source.beside(index)}
    if len(tensors) - len(other) > (len(shapes) - len(beside)) // 2:
        return
    if not other and (told := other_layers({t.name for t in tensors}, source)):
        raise FormatError(f"{name}: not what {theirs_name} gives as it is: {told}")
    example = ""
    if other:
        shape = shapes.get(other[0].name)
        there = f"is {_shape(shape)} there" if shape is not None else "is not there"
        example = f"; {other[0].name}, {_shape(other[0].ne)}, {there}"
    raise FormatError(
        f"{name}: another model than {theirs_name}: {len(tensors) - len(other)} of its "
        f"{len(tensors)} tensors have name and shape of one of the source's {len(shapes)}{example}"
    )


def other_layers(names: Collection[str], source: Source) -> str:
    """What a file of tensors `names` has of the layers of `source` that guess further tokens, where
    it is not all, in words with the remedy; '' where that is not so."""
    unused, theirs = unused_of(source.get), [tensor.name for tensor in source.tensors]
    guessing = {name for name in theirs if unused.guesses(name)}
    give = "add" if source.is_checkpoint else "compare it with the model folder and"
    if guessing and guessing.isdisjoint(names):
        return f"the file has no layers that guess further tokens; {give} --no-mtp"
    if guessing and unused.alone(names) and not unused.alone(theirs):
        return f"the file has only the layers that guess further tokens; {give} --mtp"
    return ""


def compare_fields(
    found: Iterable[Field], expected: Iterable[Field], file_type: int | None = None
) -> tuple[FieldDifference, ...]:
    """How the metadata of a file differs from that of its source, by key. With `file_type` the
    number that general.file_type should have is looked at, too."""
    found = list(found)
    own, wanted = _compared(found), _compared(expected)
    if file_type is not None:
        own |= {f.key: f for f in found if f.key == FILE_TYPE}
        wanted[FILE_TYPE] = u32(FILE_TYPE, file_type)
    keys = dict.fromkeys((*wanted, *own))
    return tuple(
        FieldDifference(key, *_shown(own.get(key), wanted.get(key)), _counts(key))
        for key in keys
        if not _same(own.get(key), wanted.get(key))
    )


def _compared(fields: Iterable[Field]) -> dict[str, Field]:
    return {
        field.key: field
        for field in fields
        if field.key not in NOT_COMPARED and not field.key.startswith(OF_THE_MAKING)
    }


def _same(one: Field | None, other: Field | None) -> bool:
    """Whether two fields are the same in a file, where a float32 has fewer digits than Python's."""
    if one is None or other is None:
        return one is other
    return (one.type, one.item) == (other.type, other.item) and (
        value_bytes(one) == value_bytes(other)
    )


def _shown(one: Field | None, other: Field | None) -> tuple[Any, Any]:
    """The values of two fields that differ; of arrays their lengths and the first item to do so."""
    fields = (one, other)
    arrays = [f.value for f in fields if f is not None and f.type is ValueType.ARRAY]
    if not arrays:
        return (None if one is None else one.value), (None if other is None else other.value)
    at = 0
    if len(arrays) == len(fields):
        pairs = enumerate(zip(*arrays, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(map(len, arrays)))
    return _item(one, at), _item(other, at)


def _item(field: Field | None, at: int) -> Any:
    if field is None or field.type is not ValueType.ARRAY:
        return None if field is None else field.value
    count = len(field.value)
    return f"{count} items" + (f", item {at} is {field.value[at]!r}" if at < count else "")


def _counts(key: str) -> bool:
    return not key.startswith("general.") or key in COMPUTED_WITH or key.startswith(SAMPLING)
