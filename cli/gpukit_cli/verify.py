"""`gpukit verify`: whether a GGUF is what a source gives, or at least sound."""

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit.errors import counted
from gpukit_cli.merge import Combine, Density, MergeBase, Rank, Seed, combining
from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    Adapters,
    Devices,
    Hub,
    ImatrixFile,
    Json,
    MoeLayout,
    Mtp,
    Pre,
    Quiet,
    file_types,
    stored_names,
)
from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit import Verification
    from gpukit.planning.again import FieldDifference
    from gpukit.recipes.verified import VerifiedTensor
    from gpukit.store import CheckedModel

# Of what differs so many lines are printed; --json has all.
SHOWN_TENSORS, SHOWN_FIELDS = 8, 20
# What a line of metadata shows of a long value.
SHOWN_CHARACTERS = 60


def verify(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="The GGUF, any part of a split one, or a name in the store.",
            show_default="none: with --all",
            autocompletion=stored_names,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="What FILE was made of: a model folder, a GGUF, a name in the store, or "
            "hf.co/org/name. It is encoded again and compared; nothing is written.",
            show_default="none: FILE is checked alone",
            autocompletion=stored_names,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Hash the blobs of every model in the store again.")
    ] = False,
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help=f"Compare the types of tensors with those of a file type, too: {FILE_TYPE_NAMES}.",
            show_default="each tensor's type in FILE is taken as it is",
            autocompletion=file_types,
        ),
    ] = None,
    adapter: Adapters = None,
    combine: Combine = None,
    density: Density = None,
    rank: Rank = None,
    seed: Seed = None,
    merge_base: MergeBase = "full",
    moe_layout: MoeLayout = None,
    imatrix: ImatrixFile = None,
    pre: Pre = None,
    mtp: Mtp = None,
    hub: Hub = False,
    device: Devices = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare a GGUF with what its source gives, byte by byte, or check it or models of the store
    alone; exit code 1 where it is not so."""
    import gpukit
    from gpukit.errors import ArgumentError

    if (file is None) != every or (every and source is not None):
        raise ArgumentError("verify: name a FILE or a model, or give --all alone")
    if file is None:
        _verify_all(quiet=quiet, json=json)
        return
    how = combining(combine, density, rank, seed)
    with reporter(quiet) as report:
        found = gpukit.verify(
            file, source, type=type, adapters=adapter or [], combine=how, merge_base=merge_base,
            moe_layout=moe_layout, imatrix=imatrix, pre=pre, mtp=mtp, hub=hub, device=device,
            report=report,
        )  # fmt: skip
    if json:
        print_json(found.as_json())
    else:
        _print(found)
    if not found.equal:
        raise typer.Exit(1)


def _verify_all(*, quiet: bool, json: bool) -> None:
    import gpukit

    with reporter(quiet) as report:
        models = gpukit.Store().verify(report=report)
    if json:
        print_json({"models": [model.as_json() for model in models]})
    else:
        for model in models:
            _print_stored(model)
        wrong = sum(not model.whole for model in models)
        print(f"{counted(len(models), 'model')}, {wrong} of them damaged")
    if not all(model.whole for model in models):
        raise typer.Exit(1)


def _print_stored(model: "CheckedModel") -> None:
    """Whether a model's blobs are what their digests say."""
    if model.whole:
        blobs = f"{counted(model.blobs, 'blob')}, {human_bytes(model.nbytes)}"
        print(f"{model.name.display}: every digest is right ({blobs})")
    for problem in model.problems:
        print(_line(f"{model.name.display}: {problem}"))


def _print(found: "Verification") -> None:
    if found.stored is not None:
        _print_stored(found.stored)
        if not found.tensors:
            return
    _print_classes(found)
    # Bytes that differ say more than a type or a name: they must not be among those left out.
    wrong = sorted((t for t in found.tensors if not t.equal), key=lambda t: not t.different)
    for tensor in wrong[:SHOWN_TENSORS]:
        print(_told(tensor))
    if len(wrong) > SHOWN_TENSORS:
        print(f"and {len(wrong) - SHOWN_TENSORS} more tensors; --json names all")
    for difference in found.metadata[:SHOWN_FIELDS]:
        print(_field(difference))
    if len(found.metadata) > SHOWN_FIELDS:
        print(f"and {len(found.metadata) - SHOWN_FIELDS} more fields; --json names all")
    for line in found.notes:
        print(line)
    print(_summary(found, len(wrong)))


def _print_classes(found: "Verification") -> None:
    rows = found.classes
    names = max((len(row.name) for row in rows), default=0)
    types = max((len(" ".join(row.types)) for row in rows), default=0)
    good, bad = ("equal", "different") if found.source is not None else ("sound", "damaged")
    print(f"{'tensors':<{names}}  {'number':>6}  {'type':<{types}}  {'size':>8}  {good:>6}  "
          f"{bad:>9}  blocks that differ")  # fmt: skip
    for row in rows:
        blocks = f"{row.different_blocks:,} of {row.blocks:,}" if row.different_blocks else "-"
        print(f"{row.name:<{names}}  {row.tensors:>6}  {' '.join(row.types):<{types}}  "
              f"{human_bytes(row.nbytes):>8}  {row.equal:>6}  {row.tensors - row.equal:>9}  "
              f"{blocks}")  # fmt: skip


def _told(tensor: "VerifiedTensor") -> str:
    """What is wrong with a tensor, in one line."""
    parts = [tensor.problem] if tensor.problem else []
    if tensor.place is not None:
        block, byte = tensor.place
        share = 100 * tensor.different / tensor.blocks
        parts.append(
            f"first at block {block:,}, byte {byte} of it (byte {tensor.first:,} of the data); "
            f"{tensor.different:,} of {tensor.blocks:,} blocks differ ({share:.2g} %)"
        )
    return f"{_line(tensor.name)}: {', '.join(parts)}"


def _field(difference: "FieldDifference") -> str:
    described = "" if difference.counts else " (it describes, and does not count)"
    return (
        f"metadata: {_line(difference.key)} is {_shown(difference.found)}, the source gives "
        f"{_shown(difference.expected)}{described}"
    )


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    text = _line(jsonlib.dumps(value, ensure_ascii=False, default=str))
    return f"{text[:SHOWN_CHARACTERS]}…" if len(text) > SHOWN_CHARACTERS else text


def _summary(found: "Verification", wrong: int) -> str:
    what = f"{len(found.tensors)} tensors, {human_bytes(found.nbytes)}, in {found.seconds:.1f} s"
    if found.source is None:
        if found.equal:
            return f"{found.name}: sound by itself ({what}); --from SOURCE compares it"
        return f"{found.name}: damaged: {wrong} of {what}"
    if found.equal:
        return f"{found.name}: equal to what {found.source_name} gives ({what})"
    fields = sum(difference.counts for difference in found.metadata)
    return (
        f"{found.name}: not what {found.source_name} gives: {wrong} of {len(found.tensors)} "
        f"tensors and {counted(fields, 'field')} of metadata differ"
    )


def _line(text: str) -> str:
    """`text` from a file, fit for a terminal."""
    from gpukit.errors import one_line

    return one_line(text)
