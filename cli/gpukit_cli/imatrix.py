"""`gpukit imatrix`: how important the columns of a model's weights are, for quantising."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit.errors import ArgumentError
from gpukit_cli.options import Device, Hub, Json, Pre, Quiet, stored_names
from gpukit_cli.output import print_json, print_table

if TYPE_CHECKING:
    from gpukit.evaluation.importance_statistics import TensorStatistics


def formats(incomplete: str) -> list[str]:
    """The forms that `incomplete` begins."""
    return [name for name in ("gguf", "dat") if name.startswith(incomplete.lower())]


def imatrix(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF, a model folder, a name in the store, or hf.co/org/name.",
            show_default="none: add up --in-file",
            autocompletion=stored_names,
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            metavar="TEXT",
            help="What the model reads; may be repeated.",
            show_default="none: add up --in-file",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The importance matrix to write.",
            show_default="imatrix.gguf",
        ),
    ] = None,
    num_ctx: Annotated[
        int, typer.Option("--num-ctx", metavar="N", help="Tokens of a chunk.")
    ] = 512,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", metavar="N", help="Chunks at most.", show_default="all"),
    ] = None,
    process_output: Annotated[
        bool, typer.Option("--process-output", help="Collect for the head, too.")
    ] = False,
    parse_special: Annotated[
        bool,
        typer.Option("--parse-special", help="Control tokens that stand in TEXT are such."),
    ] = False,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every",
            metavar="N",
            help="Save every N chunks as FILE.unfinished, from where a killed run goes on; 0: "
            "never.",
        ),
    ] = 10,
    in_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--in-file",
            metavar="FILE",
            help="An importance matrix of the same model to add; may be repeated.",
            show_default="none",
        ),
    ] = None,
    show_statistics: Annotated[
        bool,
        typer.Option(
            "--show-statistics",
            help="Print what the importance of every tensor is like; with --in-file alone only "
            "that.",
        ),
    ] = False,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--output-format",
            metavar="FORMAT",
            help="gguf, or dat, llama.cpp's older form.",
            show_default="what the ending of FILE says",
            autocompletion=formats,
        ),
    ] = None,
    pre: Pre = None,
    hub: Hub = False,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Collect how important the columns of a model's weights are while it reads a text, for
    quantize --imatrix, as llama-imatrix does; or add up what was collected."""
    if show_statistics and model is None and not file and output is None:
        _describe(in_file or [], json)
        return
    import gpukit
    from gpukit_cli.progress import human_bytes, reporter

    with reporter(quiet) as report:
        made = gpukit.imatrix(
            model, file, output or Path("imatrix.gguf"),
            num_ctx=num_ctx, chunks=chunks, process_output=process_output,
            parse_special=parse_special, in_files=in_file or (), save_every=save_every,
            output_format=output_format, device=device, pre=pre, hub=hub, report=report,
        )  # fmt: skip
    if json:
        print_json(made.as_json())
        return
    if show_statistics:
        _print(made.statistics)
    if quiet:
        return
    if show_statistics:
        print()
    rate = f" ({made.tokens / made.seconds:.0f} tokens/s)" if made.tokens else ""
    print(
        f"{made.path}: {human_bytes(made.size)}, {len(made.statistics)} tensors, {made.chunks} "
        f"chunks of {made.chunk_size} in {made.seconds:.1f} s{rate}"
    )


def _describe(files: Sequence[Path], json: bool) -> None:
    from gpukit.recipes.imatrix import describe

    if len(files) != 1:
        raise ArgumentError(
            f"--show-statistics of {len(files)} files; give one --in-file, or -o to add them up"
        )
    found = describe(files[0])
    if json:
        print_json(found.as_json())
        return
    _print(found.statistics)
    of = f" of {found.chunk_size}" if found.chunk_size else ""
    texts = f": {', '.join(found.datasets)}" if found.datasets else ""
    print(f"\n{found.path}: {len(found.statistics)} tensors, {found.chunks} chunks{of}{texts}")


# What a column is called, the value, how it is shown.
COLUMNS = (
    ("SUM x²", "sum_sq", "{:.4f}"), ("LEAST", "least", "{:.4f}"), ("MOST", "most", "{:.4f}"),
    ("ACTIVE", "active", "{:.2%}"), ("ENTROPY", "h_norm", "{:.2f}%"), ("ZD", "zd", "{:.2%}"),
    ("MEAN", "mean", "{:.4f}"), ("DEVIATION", "std_deviation", "{:.4f}"),
    ("KURTOSIS", "kurtosis", "{:.2f}"), ("GAIN", "gain", "{:.2f}"), ("COSSIM", "cossim", "{:.4f}"),
    ("PCC", "pearson", "{:.4f}"),
)  # fmt: skip


def _print(found: "Sequence[TensorStatistics]") -> None:
    rows = [("LAYER", "TENSOR", *(title for title, _, _ in COLUMNS))]
    for tensor in found:
        layer = "-" if tensor.layer is None else str(tensor.layer)
        name = tensor.tensor.removeprefix(f"blk.{tensor.layer}.").removesuffix(".weight")
        cells = (_cell(getattr(tensor, value), shown) for _, value, shown in COLUMNS)
        rows.append((layer, name, *cells))
    print_table(rows)


def _cell(value: float, shown: str) -> str:
    return "-" if value != value else shown.format(value)
