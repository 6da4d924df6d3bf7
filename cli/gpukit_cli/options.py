"""Options that several commands take."""

from typing import Annotated

import typer

Pre = Annotated[
    str | None,
    typer.Option(
        "--pre", metavar="NAME", help="Pre-tokenizer, such as llama-bpe, where none is recognised."
    ),
]
Hub = Annotated[
    bool,
    typer.Option("--hub", help="The model is an id on the Hugging Face hub, such as org/name."),
]
