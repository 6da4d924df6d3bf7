"""`gpukit merge`: adapters into their base, as a model folder or as a GGUF."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit_cli.convert import size
from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    Adapters,
    AllowRequantize,
    Devices,
    Hub,
    ImatrixFile,
    Json,
    Like,
    MoeLayout,
    Pre,
    Provenance,
    Quiet,
    Resume,
    Strict,
    TargetBpw,
    TargetSize,
    file_types,
    stored_names,
)
from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes, reporter
from gpukit_cli.results import print_changes, print_result
from gpukit_cli.several import OutPattern, Types, asked, many

if TYPE_CHECKING:
    from gpukit import Combining
    from gpukit.conversion.folder import FolderResult

METHODS = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties",
    "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip


def _methods(incomplete: str) -> list[str]:
    return [name for name in METHODS if name.startswith(incomplete)]


Combine = Annotated[
    str | None,
    typer.Option(
        "--combine",
        metavar="METHOD",
        help=f"How several adapters become one, as PEFT does it: {', '.join(METHODS)}.",
        show_default="deltas are added up",
        autocompletion=_methods,
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        "--density",
        metavar="F",
        help="The part of the values that a method that prunes keeps.",
        show_default="none",
    ),
]
NoConverter = Annotated[
    str | None,
    typer.Option(
        "--converter", metavar="DIR", help="Not taken here.", hidden=True, show_default="none"
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank", metavar="N", help="Of a combination by SVD.", show_default="the largest"
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Of methods that leave values to chance.",
        show_default="a new one",
    ),
]
MergeBase = Annotated[
    str,
    typer.Option(
        "--merge-base",
        metavar="full|nf4|nf4-single",
        help="Add deltas to the weights, or to what QLoRA's NF4 makes of them.",
    ),
]


def combining(
    method: str | None, density: float | None, rank: int | None, seed: int | None
) -> "Combining | None":
    """How several adapters become one; `ArgumentError` for what only a method has a use for."""
    import gpukit

    if method is not None:
        return gpukit.Combining(method, density=density, rank=rank, seed=seed)
    for option, value in (("--density", density), ("--rank", rank), ("--seed", seed)):
        if value is not None:
            raise gpukit.ArgumentError(f"{option} is for --combine METHOD; give that, too")
    return None


def merge(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The model: a folder, a GGUF, a name in the store, or hf.co/org/name.",
            autocompletion=stored_names,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="The .gguf file to write, or a model folder for transformers; whole and at the "
            "end.",
            show_default="what --out says",
        ),
    ] = None,
    adapter: Adapters = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help=f"Of a GGUF: {FILE_TYPE_NAMES}. Of a folder: F32, F16, BF16.",
            show_default="the base's",
            autocompletion=file_types,
        ),
    ] = None,
    types: Types = None,
    pattern: OutPattern = None,
    combine: Combine = None,
    density: Density = None,
    rank: Rank = None,
    seed: Seed = None,
    merge_base: MergeBase = "full",
    imatrix: ImatrixFile = None,
    target_bpw: TargetBpw = None,
    target_size: TargetSize = None,
    like: Like = None,
    allow_requantize: AllowRequantize = False,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Of a folder's files of weights, as 500M or 2G.",
            show_default="5G",
        ),
    ] = None,
    strict: Strict = False,
    moe_layout: MoeLayout = None,
    pre: Pre = None,
    converter: NoConverter = None,
    provenance: Provenance = False,
    hub: Hub = False,
    device: Devices = "auto",
    resume: Resume = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Merge LoRA adapters into their base: a folder, or a GGUF quantised on the way."""
    import gpukit

    if converter is not None:
        # A folder needs no converter, and adapters are fitted to the names that are in it.
        raise gpukit.ArgumentError(
            f"merge takes no --converter: merge into a folder of any class (gpukit merge {base} "
            "FOLDER --adapter DIR), then convert that (gpukit quantize FOLDER OUT TYPE --converter "
            f"{converter})"
        )
    how = combining(combine, density, rank, seed)
    kinds, place = asked(
        "merge", types, out, pattern, type=type, target_bpw=target_bpw, target_size=target_size,
        like=like, max_shard_size=max_shard_size,
    )  # fmt: skip
    if kinds:
        many(
            None,
            lambda report: gpukit.merge_many(
                base, adapter or [], place, kinds, combine=how, merge_base=merge_base,
                imatrix=imatrix, allow_requantize=allow_requantize, strict=strict,
                moe_layout=moe_layout, pre=pre, provenance=provenance, hub=hub, device=device,
                resume=resume, report=report,
            ),
            quiet=quiet, json=json,
        )  # fmt: skip
        return
    with reporter(quiet) as report:
        result = gpukit.merge(
            base, adapter or [], place, type, combine=how, merge_base=merge_base, imatrix=imatrix,
            target_bpw=target_bpw, target_size=size(target_size), like=like,
            allow_requantize=allow_requantize, max_shard_size=size(max_shard_size), strict=strict,
            moe_layout=moe_layout, pre=pre, provenance=provenance, hub=hub, device=device,
            resume=resume, report=report,
        )  # fmt: skip
    if isinstance(result, gpukit.Result):
        print_result(result, json=json, quiet=quiet)
    else:
        _print_folder(result, json=json, quiet=quiet)


def _print_folder(result: "FolderResult", *, json: bool, quiet: bool) -> None:
    if json:
        print_json(result.as_json())
    if json or quiet:
        return
    print_changes(result.changes)
    print(f"{result.path}: {len(result.paths)} files, {human_bytes(result.size)} in "
          f"{result.seconds:.1f} s")  # fmt: skip
