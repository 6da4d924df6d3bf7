"""What an importance matrix means for the tensors of a plan, and what is done where it has nothing.

    a tensor without an entry         no importance, as llama-quantize
    the same, which no pass uses,     1 for each column, where llama-quantize refuses: nothing
    where a type wants it             could come to it
    an expert that nothing came to    1 for each column, as llama-quantize
    the same where Q2_K_S wants it    no importance: Q2_K's bytes as other file types have them,
                                      where llama-quantize refuses
    the same where a type wants it    refused, as by llama-quantize

Each is told in a line. Source: src/llama-quant.cpp of llama.cpp.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from gpukit.errors import ArgumentError, counted
from gpukit.formats.file_types import FileType
from gpukit.formats.gguf_fields import Field, TensorSpec, string, u32
from gpukit.formats.imatrix import Floats, Imatrix
from gpukit.models.unused import Unused
from gpukit.planning.mix_rules import WANT_IMPORTANCE
from gpukit.planning.mixes import needs_importance
from gpukit.planning.plan import PlannedOutput
from gpukit.sources.base import Source
from gpukit_kernels import type_facts

# llama-quantize keeps no more bytes of a text that it notes.
NOTED = 127
# Types of which there are no blocks without importance.
NEEDS_IMPORTANCE = {name for name, facts in type_facts().items() if facts.needs_importance}


def noted(imatrix: Imatrix | None) -> list[Field]:
    """What llama-quantize writes into a file about the importance that it used; of importance that
    was collected on the way there is no file."""
    if imatrix is None:
        return []
    cut = [text.encode()[:NOTED].decode("utf-8", "ignore") for text in
           (str(imatrix.path), imatrix.dataset)]  # fmt: skip
    fields = [string("quantize.imatrix.file", cut[0])] if imatrix.is_file else []
    if cut[1]:
        fields.append(string("quantize.imatrix.dataset", cut[1]))
    fields.append(u32("quantize.imatrix.entries_count", len(imatrix.entries)))
    if imatrix.chunks > 0:
        fields.append(u32("quantize.imatrix.chunks_count", imatrix.chunks))
    return fields


def importance_of(spec: TensorSpec, imatrix: Imatrix, unused: Unused) -> Floats | None:
    """The importance of a tensor's columns, of each matrix its own; None where nobody looks. Of the
    model `unused` says what no pass has a use for."""
    values = imatrix.entries.get(spec.name)
    facts = type_facts().get(spec.type)
    wanted = spec.ne[0] * prod(spec.ne[2:3])
    if values is None and spec.type in WANT_IMPORTANCE and unused.has(spec.name):
        return np.ones(wanted, np.float32)
    if values is None or facts is None or not facts.takes_importance:
        return None
    if values.size == wanted:
        return values
    if spec.name == "token_embd.weight":  # as llama-quantize has it
        return None
    raise ArgumentError(
        f"{imatrix.path}: {spec.name} has {values.size} values, the tensor takes {wanted}; "
        "this importance matrix was made for another model"
    )


def check_wanted(
    outputs: Sequence[PlannedOutput], file_type: FileType, imatrix: Imatrix | None, source: Path
) -> None:
    """`ArgumentError` where `file_type`, or a tensor's type, wants importance and there is none."""
    for output in outputs:
        spec = output.spec
        if not _lacks(output, file_type):
            continue
        if imatrix is None:
            raise ArgumentError(
                f"{source}: {spec.name}: {file_type.name} needs importance weights"
                f"{'' if file_type.name == spec.type else f' for {spec.type}'}: "
                "give --imatrix FILE, or choose Q2_K"
            )
        if spec.type != "Q2_K":
            raise ArgumentError(
                f"{imatrix.path} has nothing on {spec.name}, and {spec.type} needs importance "
                "weights: give one that has it, or another type by --tensor-type"
            )


def check_needed(outputs: Sequence[PlannedOutput], source: Source) -> None:
    """`ArgumentError` where a tensor that changes keeps a type that needs importance."""
    for output in outputs:
        kind = output.spec.type
        if kind not in NEEDS_IMPORTANCE or output.importance is not None:
            continue
        if not source.passes(output.index, kind):
            raise ArgumentError(
                f"{source.path}: {output.spec.name}: {kind} needs importance weights to be written "
                "anew: give another type with --type, F16 for example"
            )


def _lacks(output: PlannedOutput, file_type: FileType) -> bool:
    spec = output.spec
    if output.importance is not None or spec.type == output.source_type:
        return False
    # At the ends of a model llama-quantize does not ask, and fails at some types.
    return needs_importance(spec.name, spec.type, file_type) or spec.type in NEEDS_IMPORTANCE


def unheard(
    outputs: Sequence[PlannedOutput], imatrix: Imatrix | None, file_type: FileType | None
) -> list[str]:
    """Lines about tensors that are quantised without importance although there is some."""
    if imatrix is None:
        return []
    takes = {name for name, facts in type_facts().items() if facts.takes_importance}
    changed = [o for o in outputs if o.spec.type in takes and o.spec.type != o.source_type]
    if not changed:
        return [f"{imatrix.path} is not used: no tensor becomes a type that takes importance"]
    lines = []
    if names := [o.spec.name for o in changed
                 if o.importance is not None and o.spec.name not in imatrix.entries]:  # fmt: skip
        lines.append(
            f"{imatrix.path} has nothing on {some(names)}, which no pass uses: quantised with an "
            "importance of 1 for each column"
        )
    # llama-imatrix does not look at the ends of a model by default.
    without = [o for o in changed if o.importance is None and o.spec.name.startswith("blk.")]
    wanting = [o for o in without if file_type is not None and _lacks(o, file_type)]
    names = [o.spec.name for o in wanting]
    if plain := [o.spec.name for o in without if o.spec.name not in set(names)]:
        lines.append(f"{imatrix.path} has nothing on {some(plain)}: quantised without importance")
    if names and file_type is not None:
        kinds = ", ".join(sorted({o.spec.type for o in wanting}))
        lines.append(
            f"{imatrix.path} has nothing on {some(names)}, for which {file_type.name} wants "
            f"importance: {kinds} without it, as in Q2_K"
        )
    silent = {o.spec.name: imatrix.silent.get(o.spec.name, 0) for o in changed}
    if names := [name for name, count in silent.items() if count]:
        lines.append(
            f"{imatrix.path}: nothing came to {sum(silent.values())} matrices of {some(names)}: "
            "quantised with an importance of 1 for each column"
        )
    return lines


def some(names: Sequence[str]) -> str:
    """How many tensors, and the names of the first."""
    more = ", ..." if len(names) > 2 else ""
    return f"{counted(len(names), 'tensor')} ({', '.join(names[:2])}{more})"
