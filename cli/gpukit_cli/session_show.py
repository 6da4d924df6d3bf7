"""What `/show` shows of a model and of the conversation with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpukit_cli import session_help
from gpukit_cli.details import parameter_rows, print_details

if TYPE_CHECKING:
    from gpukit.generation.session import Session
    from gpukit.recipes.show import ModelDetails


def shown(what: str, word: str, session: "Session", *, hub: bool) -> Iterator[str]:
    """The lines of `/show what` for the model that `word` names."""
    if what == "info":
        _print_info(word, hub=hub)
        return
    found = _stored(word, hub=hub)
    match what:
        case "":
            yield session_help.SHOW
        case "license":
            texts = found.licenses if found else ()
            yield "\n".join(texts) or "No license was specified for this model."
        case "modelfile":
            yield found.modelfile if found else f"FROM {word}\n"
        case "parameters":
            yield from _parameters(found, session)
        case "system":
            yield f"{session.system}\n" if session.system else _NO_SYSTEM
        case "template":
            template = (found.template if found else "") or session.model.tokenizer.chat_template
            yield template or "No prompt template was specified for this model."
        case _:
            yield f"Unknown command '/show {what}'. Type /? for help"


_NO_SYSTEM = "No system message was specified for this model."


def _stored(word: str, *, hub: bool) -> "ModelDetails | None":
    """What the store knows of the model; None for a file, a folder or an id of the hub."""
    import gpukit
    from gpukit.recipes.references import locate
    from gpukit.store.names import ModelName

    found = locate(word, hub=hub).model
    return gpukit.Store().show(word) if isinstance(found, ModelName) else None


def _print_info(word: str, *, hub: bool) -> None:
    if found := _stored(word, hub=hub):
        print_details(found, verbose=False)
        return
    from gpukit_cli.inspect import inspect

    inspect(word, hub=hub, quiet=True)


def _parameters(found: "ModelDetails | None", session: "Session") -> Iterator[str]:
    from gpukit.store.parameters import words

    yield "Model defined parameters:"
    rows = parameter_rows(found) if found else []
    if not rows:
        yield "  No additional parameters were specified for this model."
    for key, value in rows:
        yield f"  {key:<30} {value}"
    yield ""
    if session.parameters:
        yield "User defined parameters:"
        for key, word in words(session.parameters):
            yield f"  {key:<30} {word}"
        yield ""
