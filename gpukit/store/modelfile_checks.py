"""A Modelfile that a program has made, looked at as one that is read from text."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

from gpukit.errors import ArgumentError, ModelfileError, unlike
from gpukit.given import path_of, text_of, texts_of
from gpukit.store import parameters
from gpukit.store.modelfile import Modelfile, check_template, version


def checked(made: Modelfile) -> Modelfile:
    """`made`, its values as `parse` gives them; `ModelfileError` names the field whose value no
    line of a Modelfile can set. What FROM names is not looked at."""
    found: dict[str, Any] = {}
    for name, read in _FIELDS.items():
        try:
            found[name] = read(getattr(made, name))
        except ArgumentError as error:
            raise ModelfileError(f"{name}: {error}") from None
    check_template(found["template"])
    told = filter(None, map(parameters.deprecated, made.parameters))
    return replace(made, **found, messages=made.turns, warnings=(*made.warnings, *told))


def _text(value: object) -> str:
    return text_of(value, "a text")


def _texts(value: object) -> tuple[str, ...]:
    return texts_of(value, "a list of texts")


def _paths(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        value = [str(each) if isinstance(each, PathLike) else each for each in value]
    return texts_of(value, "a list of paths")


def _parameters(values: object) -> dict[str, parameters.Value]:
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ArgumentError(unlike("a dict such as {'temperature': 0}", values))
    names = (name for name in sorted(values) if not parameters.deprecated(name))
    return {name: parameters.given(name, values[name]) for name in names}


_FIELDS: dict[str, Callable[[object], object]] = {
    "folder": lambda value: path_of(value, "a path"),
    "parameters": _parameters,
    **dict.fromkeys(("template", "system", "renderer", "parser"), _text),
    **dict.fromkeys(("adapters", "drafts", "projectors"), _paths),
    "licenses": _texts,
    "requires": lambda value: version(_text(value)) if value != "" else "",
}
