"""Types that another file's tensors have, for a model whose tensors have the same names."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import FILE_TYPE, FILE_TYPES, FileType, file_type_name
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.gguf_split import GGUFModel
from gpukit.planning.mixes import unfitting
from gpukit.planning.overrides import Overrides
from gpukit_kernels import type_facts

LIKE = "--like"
# Of several file types with one default the one that people mean.
USUAL = {
    "Q3_K": "Q3_K_M",
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
    "MXFP4": "MXFP4_MOE",
    "IQ2_S": "IQ2_M",
}


def types_like(
    template: Path, tensors: Sequence[TensorSpec], model: Path
) -> tuple[FileType, Overrides, list[str]]:
    """The file type of the GGUF `template`, the type that each of `tensors` has there, and lines
    for the user. `ArgumentError` for a tensor of `model` that it lacks, and for a type that does
    not fit or cannot be written; `GGUFError` for a file that is malformed."""
    with GGUFModel(template) as found:
        types = {name: info.type for name, info in found.tensors.items()}
        number = found.fields[FILE_TYPE].value if FILE_TYPE in found.fields else None
    wanted = {tensor.name: tensor for tensor in tensors}
    if lacking := [name for name in wanted if name not in types]:
        raise ArgumentError(
            f"{template}: has no {lacking[0]}, which {model} has ({len(lacking)} of its "
            f"{len(wanted)} tensors are not there); name a GGUF of the same model"
        )
    for tensor in tensors:
        _check(tensor, types[tensor.name], template, model)
    own = {name: types[name] for name in wanted}
    idle = [name for name in types if name not in wanted]
    lines = []
    if idle:
        lines = [f"{template}: {idle[0]} and what else the model lacks ({len(idle)} of "
                 f"{len(types)} tensors) are not looked at"]  # fmt: skip
    name = file_type_name(number)
    file_type = FILE_TYPES[name] if name in FILE_TYPES else file_type_for(tensors, own)
    return file_type, Overrides(exact=own, exact_option=f"{LIKE} {template}"), lines


def _check(tensor: TensorSpec, kind: str, template: Path, model: Path) -> None:
    facts = type_facts().get(kind)
    where = f"{template}: {tensor.name} is {kind}"
    if kind == tensor.type:
        return
    if facts is None or not facts.encodable:
        known = [name for name, facts in type_facts().items() if facts.encodable]
        raise ArgumentError(f"{where}, which gpukit cannot write; known: {', '.join(known)}")
    if fault := unfitting(tensor, kind):
        raise ArgumentError(f"{where}, but in {model} {fault}; name a GGUF of the same model")


def file_type_for(tensors: Sequence[TensorSpec], types: dict[str, str]) -> FileType:
    """What general.file_type says of tensors with mixed `types` by their names: the file type whose
    default most of the weights have that are in blocks, of none in blocks that of most."""
    weights: Counter[str] = Counter()
    known = {row.default for row in FILE_TYPES.values()}
    for tensor in tensors:
        if (kind := types.get(tensor.name)) in known and kind is not None:
            weights[kind] += tensor.n_elements
    blocks = {kind: n for kind, n in weights.items() if type_facts()[kind].block > 1} or weights
    # The most weights, of as many the type with the smaller number.
    kind = min(blocks, key=lambda k: (-blocks[k], type_facts()[k].id), default="F32")
    return FILE_TYPES[USUAL.get(kind, kind)]
