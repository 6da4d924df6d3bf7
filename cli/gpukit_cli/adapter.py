"""`gpukit adapter`: an adapter as a file for llama.cpp."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit_cli.options import Hub, Json, MoeLayout, Quiet, Strict, stored_names
from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit import AdapterResult

TYPES = ("F32", "F16", "BF16", "Q8_0")


def _types(incomplete: str) -> list[str]:
    return [name for name in TYPES if name.startswith(incomplete.upper())]


def adapter(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A LoRA adapter: a folder of PEFT or mlx-lm, a GGUF, or hf.co/org/name.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The GGUF to write. A file that is there is replaced, whole and at the end.",
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="The model that the adapter is for: a folder, a GGUF, a name in the store, or "
            "hf.co/org/name.",
            autocompletion=stored_names,
        ),
    ],
    type: Annotated[
        str,
        typer.Option("--type", metavar="TYPE", help=f"{', '.join(TYPES)}.", autocompletion=_types),
    ] = "F32",
    moe_layout: MoeLayout = None,
    strict: Strict = False,
    hub: Hub = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a LoRA adapter as a GGUF that llama.cpp loads beside its base."""
    import gpukit

    with reporter(quiet) as report:
        result = gpukit.write_adapter(
            source, base, out, type=type, hub=hub, strict=strict, layout=moe_layout, report=report
        )
    _print_result(result, json)


def _print_result(result: "AdapterResult", json: bool) -> None:
    if json:
        print_json(result.as_json())
        return
    ranks = ", ".join(map(str, result.ranks))
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    folded = f", the scale of {result.folded} multiplied into B" if result.folded else ""
    print(f"{result.path}: {human_bytes(result.size)}, {result.architecture}, {result.pairs} pairs "
          f"({types}), rank {ranks}, alpha {result.alpha:g}{folded}")  # fmt: skip
