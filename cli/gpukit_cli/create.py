"""`create`: a model of a Modelfile, put into the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit_cli.converter import (
    ConverterArguments,
    ConverterPython,
    ConverterTree,
    Trust,
    converter_of,
)
from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    AllowRequantize,
    Calibrate,
    Devices,
    DryRun,
    Hub,
    ImatrixFile,
    Json,
    Mtp,
    Pre,
    Provenance,
    Quiet,
    TensorTypes,
    file_types,
    stored_names,
)
from gpukit_cli.output import print_json, print_table

if TYPE_CHECKING:
    from gpukit.recipes.create import PlannedModel

DEFAULT_MODELFILE = Path("Modelfile")


def create(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The model's name, such as llama3.2:1b; a model that has it is replaced at the "
            "end.",
            autocompletion=stored_names,
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="The Modelfile.",
            show_default="./Modelfile, else FROM .",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            "-q",
            metavar="TYPE",
            help=f"File type to quantise to: {FILE_TYPE_NAMES}.",
            show_default="a folder's own, or the types of a GGUF",
            autocompletion=file_types,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Merge adapters into the weights, as -q does; else they stay beside."
        ),
    ] = False,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link a .gguf that is taken as it is, where the disk cannot share its blocks "
            "with a copy. The file must not be changed then.",
        ),
    ] = False,
    pre: Pre = None,
    mtp: Mtp = None,
    converter: ConverterTree = None,
    converter_arg: ConverterArguments = None,
    converter_python: ConverterPython = None,
    trust_remote_code: Trust = False,
    provenance: Provenance = False,
    hub: Hub = False,
    imatrix: ImatrixFile = None,
    tensor_type: TensorTypes = None,
    allow_requantize: AllowRequantize = False,
    calibrate: Calibrate = None,
    device: Devices = "auto",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a model in the store from a checkpoint folder, a .gguf file or another model."""
    import gpukit
    from gpukit_cli.progress import reporter

    source: gpukit.Modelfile | Path = file or DEFAULT_MODELFILE
    if file is None and not DEFAULT_MODELFILE.exists():
        source = gpukit.Modelfile(source=".", folder=Path.cwd())
    options = gpukit.Options(
        gpukit.make_overrides(tensor_type or []), allow_requantize=allow_requantize, mtp=mtp
    )
    how = converter_of(converter, converter_arg, converter_python, trust_remote_code)
    if dry_run:
        from gpukit.recipes.create import plan_create
        from gpukit.store import modelfile

        parsed = source if isinstance(source, gpukit.Modelfile) else modelfile.read(source)
        with reporter(quiet) as report:
            planned = plan_create(
                gpukit.Store(), name, parsed, quantize,
                pre=pre, imatrix=imatrix, options=options, calibrate=calibrate, hub=hub,
                merge=merge, converter=how, provenance=provenance, report=report,
            )  # fmt: skip
        _print_planned(planned, json=json, quiet=quiet)
        return
    with reporter(quiet) as report:
        made = gpukit.Store().create(
            name, source, quantize,
            device=device, pre=pre, imatrix=imatrix, options=options, calibrate=calibrate,
            hub=hub, merge=merge, converter=how, provenance=provenance, link=link, report=report,
        )  # fmt: skip
    if json:
        print_json({"name": made.name.display, "digest": made.digest, "size": made.size})


def _print_planned(planned: "PlannedModel", *, json: bool, quiet: bool) -> None:
    from gpukit_cli.progress import human_bytes
    from gpukit_cli.results import print_tensors

    if json:
        print_json(planned.as_json())
        return
    print_tensors(planned.weights, quiet=quiet)
    table = [("LAYER", "SIZE", "DIGEST", "IN THE STORE")]
    for layer in planned.layers:
        digest = layer.digest.removeprefix("sha256:")[:12] or "when written"
        there = "-" if not layer.digest else "yes" if layer.digest in planned.there else "no"
        table.append((layer.kind, human_bytes(layer.size), digest, there))
    print()
    print_table(table)
    layers = f"{len(planned.layers)} layers" if len(planned.layers) > 1 else "a layer"
    print(f"{planned.name.display}: {layers} of {human_bytes(planned.size)}; nothing was written")
