"""`create`, `list`, `show`, `cp` and `rm`: the models in the store."""

from datetime import UTC, datetime
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
from gpukit_cli.details import parameter_rows, print_details
from gpukit_cli.options import (
    FILE_TYPE_NAMES,
    Calibrate,
    Devices,
    DryRun,
    Hub,
    ImatrixFile,
    Json,
    Pre,
    Provenance,
    Quiet,
    StoredName,
    file_types,
    stored_names,
)
from gpukit_cli.output import complain, print_json, print_table

if TYPE_CHECKING:
    from gpukit import Store
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
    converter: ConverterTree = None,
    converter_arg: ConverterArguments = None,
    converter_python: ConverterPython = None,
    trust_remote_code: Trust = False,
    provenance: Provenance = False,
    hub: Hub = False,
    imatrix: ImatrixFile = None,
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
    how = converter_of(converter, converter_arg, converter_python, trust_remote_code)
    if dry_run:
        from gpukit.recipes.create import plan_create
        from gpukit.store import modelfile

        parsed = source if isinstance(source, gpukit.Modelfile) else modelfile.read(source)
        with reporter(quiet) as report:
            planned = plan_create(
                gpukit.Store(), name, parsed, quantize,
                pre=pre, imatrix=imatrix, calibrate=calibrate, hub=hub, merge=merge,
                converter=how, provenance=provenance, report=report,
            )  # fmt: skip
        _print_planned(planned, json=json, quiet=quiet)
        return
    with reporter(quiet) as report:
        made = gpukit.Store().create(
            name, source, quantize,
            device=device, pre=pre, imatrix=imatrix, calibrate=calibrate, hub=hub, merge=merge,
            converter=how, provenance=provenance, link=link, report=report,
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


def list_models(
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="PREFIX",
            help="Only models whose names begin so, in any case.",
            show_default="all",
            autocompletion=stored_names,
        ),
    ] = "",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List the models in the store, the latest first."""
    from gpukit_cli.progress import human_bytes, reporter

    store = _tidy_store()
    with reporter(quiet) as report:
        models = store.list(prefix, report)
    if json:
        print_json({"models": [model.as_json() for model in models]})
        return
    now = datetime.now(UTC)
    table = [("NAME", "ID", "SIZE", "MODIFIED")]
    for model in models:
        age = human_age((now - model.modified).total_seconds())
        table.append((model.name.display, model.id, human_bytes(model.size), age))
    print_table(table)


def show(
    name: StoredName,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Print its Modelfile.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Print its parameters.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Print its system text.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print its template.")] = False,
    license: Annotated[bool, typer.Option("--license", help="Print its licences.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show metadata and tensors, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what is known of a model."""
    from gpukit.errors import ArgumentError

    if modelfile + parameters + system + template + license > 1:
        raise ArgumentError(
            "only one of '--license', '--modelfile', '--parameters', '--system', or "
            "'--template' can be specified"
        )
    found = _tidy_store().show(name)
    if json:
        print_json(found.as_json(verbose=verbose))
    elif modelfile:
        print(found.modelfile, end="")
    elif parameters:
        for key, value in parameter_rows(found):
            print(f"{key:<30} {value}")
    elif system or template:
        print(found.system if system else found.template, end="")
    elif license:
        print("\n".join(found.licenses))
    else:
        print_details(found, verbose=verbose)


def cp(
    source: StoredName,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="NEW",
            help="The second name; a model that has it is replaced.",
            autocompletion=stored_names,
        ),
    ],
) -> None:
    """Give a model a second name."""
    _tidy_store().copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Models in the store. Of one that is not there a line tells, and the others go.",
            autocompletion=stored_names,
        ),
    ],
) -> None:
    """Remove models, and the blobs that no other model uses."""
    from gpukit.errors import StoreError

    store = _tidy_store()
    for name in names:
        store.find(name)  # what is no name is told before anything goes
    failed = False
    for name in names:
        try:
            store.remove(name)
        except StoreError as error:
            failed = True
            complain(str(error))
        else:
            print(f"deleted '{name}'", flush=True)
    if failed:
        raise typer.Exit(1)


def gc(dry_run: DryRun = False, quiet: Quiet = False, json: Json = False) -> None:
    """Remove blobs and unfinished pulls that belong to no model, after an hour."""
    import gpukit
    from gpukit_cli.progress import human_bytes, reporter

    with reporter(quiet) as report:
        found = gpukit.Store().gc(dry_run=dry_run, report=report)
    if json:
        print_json(found.as_json())
        return
    if dry_run:
        for name in found.removed:
            print(name)
    verb = "would remove" if dry_run else "removed"
    young = f"; {found.young} younger than an hour stay" if found.young else ""
    print(f"{verb} {len(found.removed)} files, {human_bytes(found.nbytes)}{young}")


def human_age(seconds: float) -> str:
    """How long ago, in Ollama's words: `3 hours ago`, `About a minute ago`."""
    minutes, hours = int(seconds // 60), round(seconds / 3600)
    steps = (
        (seconds < 1, "Less than a second"),
        (seconds < 2, "1 second"),
        (seconds < 60, f"{int(seconds)} seconds"),
        (minutes == 1, "About a minute"),
        (minutes < 60, f"{minutes} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 7 * 2, f"{hours // 24} days"),
        (hours < 24 * 30 * 2, f"{hours // 24 // 7} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 24 // 30} months"),
        (True, f"{hours // 24 // 365} years"),
    )
    return next(text for holds, text in steps if holds) + " ago"


def _tidy_store() -> "Store":
    """The store, without what killed commands left in it."""
    import gpukit

    store = gpukit.Store()
    store.tidy()
    return store
