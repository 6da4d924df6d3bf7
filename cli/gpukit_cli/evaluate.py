"""`gpukit perplexity`: how well models expect a text, and what quantising cost."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit.errors import ArgumentError
from gpukit_cli.measures import ChunkPrinter, print_divergence, print_estimate, print_rows
from gpukit_cli.options import (
    Adapters,
    Devices,
    Hub,
    ImatrixFile,
    Json,
    MoeLayout,
    Pre,
    Quiet,
    Strict,
    stored_names,
)
from gpukit_cli.output import print_json
from gpukit_cli.progress import reporter

if TYPE_CHECKING:
    from gpukit.recipes.perplexity import Perplexity


def perplexity(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models: a GGUF, a model folder, a name in the store, or hf.co/org/name. Of "
            "several each is compared with the first.",
            autocompletion=stored_names,
        ),
    ],
    text: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="TEXT",
            help="The file with the text, such as wiki.test.raw; - is stdin.",
            show_default="that of the logits file",
        ),
    ] = None,
    num_ctx: Annotated[
        int | None,
        typer.Option(
            "--num-ctx",
            metavar="N",
            help="Tokens of a window; the second half of each is scored.",
            show_default="512, or that of the logits file",
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", metavar="N", help="Windows at most.", show_default="all"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            help="Begin a window every N tokens and score the last N of each.",
            show_default="windows follow each other",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="The reference: a model, or a logits file of llama-perplexity.",
            show_default="none, or the first of several models",
            autocompletion=stored_names,
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(
            "--types",
            metavar="T1,T2,...",
            help="Quantise the model to each of these file types in memory, and measure them.",
            show_default="none",
        ),
    ] = None,
    imatrix: ImatrixFile = None,
    save_logits: Annotated[
        Path | None,
        typer.Option(
            "--save-logits",
            metavar="FILE",
            help="Write a logits file, the --kl-divergence-base of llama-perplexity.",
            show_default="none",
        ),
    ] = None,
    save_report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write a page with the numbers, plots and the worst tokens, such as out.html.",
            show_default="none",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FILE",
            help="Keep what is known after each window; the same command goes on from there.",
            show_default="none",
        ),
    ] = None,
    adapter: Adapters = None,
    strict: Strict = False,
    moe_layout: MoeLayout = None,
    pre: Pre = None,
    hub: Hub = False,
    device: Devices = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure perplexity as llama-perplexity does, and the divergence from a reference."""
    import gpukit

    kinds = [kind for kind in (types or "").split(",") if kind.strip()]
    if types is not None and not kinds:
        raise ArgumentError("--types names no type; give some, as in --types Q8_0,Q4_K_M")
    several = len(models) > 1 or bool(kinds)
    if several and save_logits is not None:
        raise ArgumentError("--save-logits is for one model; name that alone")
    words = None if text is None else _text(text)
    lines = not (several or json or quiet)
    with reporter(quiet, bars=not lines) as report:
        printer = ChunkPrinter(report)
        heard = printer if lines else report
        found: tuple[Perplexity, ...]
        if several:
            found = gpukit.perplexities(
                models, words, types=[kind.strip() for kind in kinds], imatrix=imatrix,
                num_ctx=num_ctx, chunks=chunks, stride=stride, against=against,
                adapters=adapter or [], strict=strict, moe_layout=moe_layout,
                save_report=save_report, journal=journal, pre=pre, hub=hub, device=device,
                report=heard,
            )  # fmt: skip
        else:
            if imatrix is not None:
                raise ArgumentError("--imatrix is for --types; give some, or leave it out")
            found = (
                gpukit.perplexity(
                    models[0], words, num_ctx=num_ctx, chunks=chunks, stride=stride,
                    against=against, adapters=adapter or [], strict=strict,
                    moe_layout=moe_layout, save_logits=save_logits, save_report=save_report,
                    journal=journal, pre=pre, hub=hub, device=device, report=heard,
                ),
            )  # fmt: skip
        printer.end()
    _print(found, several=several, json=json)


def _text(word: str) -> str | Path:
    """The file `word`, or what stdin holds where it is -."""
    if word != "-":
        return Path(word)
    from gpukit.evaluation.windows import decoded

    return decoded(sys.stdin.buffer.read(), "stdin")


def _print(found: "tuple[Perplexity, ...]", *, several: bool, json: bool) -> None:
    if json:
        rows = [each.as_json() for each in found]
        against = next((each.against for each in found if each.against is not None), None)
        print_json({"against": against, "models": rows} if several else rows[0])
    elif several:
        print_rows(found)
    elif found[0].divergence is not None:
        print_divergence(found[0], found[0].divergence)
    else:
        print_estimate(found[0])
