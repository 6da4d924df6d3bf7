"""`gpukit adapter`: an adapter as a file for llama.cpp."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit.errors import ArgumentError
from gpukit_cli.options import Device, Hub, Json, MoeLayout, Quiet, Strict, stored_names
from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit import AdapterResult, Extraction

TYPES = ("F32", "F16", "BF16", "Q8_0")
# Of what is extracted, where none is given.
RANK = 16


def _types(incomplete: str) -> list[str]:
    return [name for name in TYPES if name.startswith(incomplete.upper())]


Source = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="A LoRA adapter: a folder of PEFT or mlx-lm, a GGUF, or hf.co/org/name; with "
        "--extract the folder to make, and OUT is left out.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Argument(
        metavar="OUT",
        help="The GGUF to write. A file that is there is replaced, whole and at the end; DIR "
        "never is.",
        show_default="none",
    ),
]
Base = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The model that the adapter is for: a folder, a GGUF, a name in the store, or "
        "hf.co/org/name.",
        autocompletion=stored_names,
    ),
]
Type = Annotated[
    str, typer.Option("--type", metavar="TYPE", help=f"{', '.join(TYPES)}.", autocompletion=_types)
]
Extract = Annotated[
    str | None,
    typer.Option(
        "--extract",
        metavar="TUNED",
        help="Make a folder for PEFT of what this model folder has more than MODEL.",
        show_default="none",
    ),
]


def adapter(
    source: Source,
    base: Base,
    out: Out = None,
    type: Type = "F32",
    moe_layout: MoeLayout = None,
    strict: Strict = False,
    extract: Extract = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="R",
            min=1,
            help="Rank of what is extracted.",
            show_default=str(RANK),
        ),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Extract embedding and head, too.")
    ] = False,
    norms: Annotated[
        bool, typer.Option("--norms", help="Save norms that differ whole (modules_to_save).")
    ] = False,
    device: Device = "auto",
    hub: Hub = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a LoRA adapter as a GGUF for llama.cpp, or extract one from a tuned model."""
    given = {"--rank": rank is not None, "--embeddings": embeddings, "--norms": norms}
    _check(source, out, extract, reading=strict or bool(moe_layout), taking=given)
    import gpukit

    with reporter(quiet) as report:
        if extract is not None:
            made = gpukit.extract_adapter(
                extract, base, source, RANK if rank is None else rank,
                embeddings=embeddings, norms=norms, type=type, device=device, hub=hub,
                report=report,
            )  # fmt: skip
        else:
            written = gpukit.write_adapter(
                source, base, out or "", type=type, hub=hub, strict=strict, layout=moe_layout,
                report=report,
            )  # fmt: skip
    result = made if extract is not None else written
    if json:
        print_json(result.as_json())
    elif not quiet and extract is not None:
        _print_extraction(made)
    elif not quiet:
        _print_result(written)


def _check(
    source: str,
    out: Path | None,
    extract: str | None,
    *,
    reading: bool,
    taking: Mapping[str, bool],
) -> None:
    """`ArgumentError` for words of one of the two works with the other."""
    if extract is None and out is None:
        raise ArgumentError("Missing argument 'OUT': the GGUF to write (see gpukit adapter --help)")
    if extract is None and (option := next(filter(taking.get, taking), None)):
        raise ArgumentError(f"{option} belongs to --extract: leave it out")
    if extract is not None and out is not None:
        raise ArgumentError(f"--extract: one folder to make, not {source} and {out}")
    if extract is not None and reading:
        raise ArgumentError("--extract reads no adapter: leave --strict and --moe-layout out")


def _print_result(result: "AdapterResult") -> None:
    ranks = ", ".join(map(str, result.ranks))
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    folded = f", the scale of {result.folded} multiplied into B" if result.folded else ""
    print(f"{result.path}: {human_bytes(result.size)}, {result.architecture}, {result.pairs} pairs "
          f"({types}), rank {ranks}, alpha {result.alpha:g}{folded}")  # fmt: skip


def _print_extraction(made: "Extraction") -> None:
    names = max(len("tensors"), *(len(found.name) for found in made.classes))
    print(f"{'tensors':<{names}}  {'number':>6}  {'kept':>8}  {'||dW|| / ||W||':>14}")
    for found in made.classes:
        print(f"{found.name:<{names}}  {found.tensors:>6}  {100 * found.kept:>6.2f} %  "
              f"{found.change:>14.3g}")  # fmt: skip
    ways = [f"{made.exact} exactly"] * bool(made.exact)
    ways += [f"{made.randomised} by random subspaces"] * bool(made.randomised)
    print("kept: of the sum of squares of the difference; decomposed " + ", ".join(ways))
    print(f"{made.path}: {human_bytes(made.size)}, rank {made.rank}, "
          f"{100 * made.kept:.2f} % kept")  # fmt: skip
