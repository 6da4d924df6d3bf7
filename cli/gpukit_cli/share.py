"""`push`, `pull` and `key`: models at registries, and the key by which these know a user."""

from typing import TYPE_CHECKING, Annotated

import typer

from gpukit_cli.options import Json, Quiet, stored_names
from gpukit_cli.output import print_json

if TYPE_CHECKING:
    from gpukit import Transfer

Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Admit plain http and certificates that nobody vouches for."),
]


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model's name, such as llama3.2:1b or localhost:5000/me/llama:q4; a model that "
            "has it is replaced at the end.",
            autocompletion=stored_names,
        ),
    ],
    insecure: Insecure = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fetch a model from a registry. An interrupted pull goes on where it stopped."""
    import gpukit
    from gpukit_cli.progress import reporter

    with reporter(quiet) as report:
        pulled = gpukit.Store().pull(name, insecure=insecure, report=report)
    _print(pulled, "pulled", json=json, quiet=quiet)


def push(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model in the store; for the Hugging Face hub the path of a .gguf file, too.",
            autocompletion=stored_names,
        ),
    ],
    to: Annotated[
        str | None,
        typer.Argument(
            metavar="TO",
            help="Its name there, such as localhost:5000/me/llama:q4; hf.co/org/name is the "
            "Hugging Face hub.",
            show_default="NAME",
        ),
    ] = None,
    insecure: Insecure = False,
    private: Annotated[
        bool,
        typer.Option("--private", help="Make a new repository of the Hugging Face hub private."),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Send a model to a registry. An interrupted push goes on where it stopped."""
    import gpukit
    from gpukit_cli.progress import reporter

    with reporter(quiet) as report:
        pushed = gpukit.Store().push(name, to, insecure=insecure, private=private, report=report)
    _print(pushed, "pushed", json=json, quiet=quiet)


def key(
    what: Annotated[
        str, typer.Argument(metavar="show", help="show prints the public half; made when absent.")
    ] = "show",
) -> None:
    """Show the key by which registries of Ollama's kind know you (~/.ollama/id_ed25519)."""
    from gpukit.errors import ArgumentError
    from gpukit.remote.keys import load_or_make

    if what != "show":
        raise ArgumentError(f"gpukit key {what}: there is gpukit key show")
    print(load_or_make().line)


def _print(made: "Transfer", verb: str, *, json: bool, quiet: bool) -> None:
    from gpukit_cli.progress import human_bytes

    if json:
        print_json(made.as_json())
        return
    mounted = f", {made.mounted} mounted" if made.mounted else ""
    if not quiet:
        print(
            f"{verb} '{made.name}': {human_bytes(made.moved)} of {human_bytes(made.size)} "
            f"moved{mounted}"
        )
        if made.url:
            print(f"You can find your model at: {made.url}")
