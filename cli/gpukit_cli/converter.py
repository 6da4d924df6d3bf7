"""--converter and what goes with it: llama.cpp's converter in the place of gpukit's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpukit import Converter

ConverterTree = Annotated[
    Path | None,
    typer.Option(
        "--converter",
        metavar="DIR",
        help="Let llama.cpp's converter read the folder: a checkout of llama.cpp, whose code is "
        "run. It knows classes that gpukit does not.",
        show_default="gpukit's own",
    ),
]
ConverterArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--converter-arg",
        metavar="ARG",
        help="An argument of that converter, as --converter-arg=--mmproj; may be repeated.",
        show_default="none",
    ),
]
ConverterPython = Annotated[
    Path | None,
    typer.Option(
        "--converter-python",
        metavar="EXE",
        help="The Python that runs it.",
        show_default="gpukit's own",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the converter run code that lies in the model's folder.",
    ),
]


def converter_of(
    tree: Path | None, arguments: list[str] | None, python: Path | None, trust: bool
) -> "Converter | None":
    """What the four options say together; None without a checkout.

    `ArgumentError` for what is only for one.
    """
    from gpukit.errors import ArgumentError
    from gpukit.sources.converter_process import Converter

    if tree is not None:
        return Converter(tree, tuple(arguments or ()), python, trust)
    for option, value in (
        ("--converter-arg", arguments),
        ("--converter-python", python),
        ("--trust-remote-code", trust),
    ):
        if value:
            raise ArgumentError(f"{option} is for --converter DIR, a checkout of llama.cpp")
    return None
