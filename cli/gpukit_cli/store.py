"""`list`, `show`, `cp`, `rm` and `gc`: the models in the store."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from gpukit.errors import counted
from gpukit_cli.details import parameter_rows, print_details
from gpukit_cli.options import DryRun, Json, Quiet, StoredName, stored_names
from gpukit_cli.output import complain, print_json, print_table

if TYPE_CHECKING:
    from gpukit import Store


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
    """Show what is known of a model, or one part of it alone, with --json, too."""
    from gpukit.errors import ArgumentError

    wanted = {"license": license, "modelfile": modelfile, "parameters": parameters,
              "system": system, "template": template}  # fmt: skip
    sections = [name for name, is_wanted in wanted.items() if is_wanted]
    if len(sections) > 1:
        raise ArgumentError(
            "only one of '--license', '--modelfile', '--parameters', '--system', or "
            "'--template' can be specified"
        )
    found = _tidy_store().show(name)
    if json:
        document = found.as_json(verbose=verbose)
        if modelfile:  # the whole document has null for one that cannot be written
            document["modelfile"] = found.modelfile
        print_json({name: document[name] for name in sections} if sections else document)
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
    stay = "stays" if found.young == 1 else "stay"
    young = f"; {found.young} younger than an hour {stay}" if found.young else ""
    print(f"{verb} {counted(len(found.removed), 'file')}, {human_bytes(found.nbytes)}{young}")


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
