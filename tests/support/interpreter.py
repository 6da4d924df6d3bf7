"""Triton's interpreter without the work that it does over and over.

It puts its own functions in the place of the language's at every call of a `@triton.jit` function
by another, for which it looks through all that the language has: more than half of its time. Once
a launch is enough, since nothing puts them back before its end.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

from triton import language
from triton.runtime import interpreter

LANGUAGES = (language, language.core)


def patch_once_a_launch() -> None:
    """From here on every launch looks through each part of the language once.

    Does nothing with a Triton whose interpreter is built otherwise, which is then as slow as it is.
    """
    if not (hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "GridExecutor")):
        return
    patch = interpreter._patch_lang
    patched: set[int] = set()
    seen: dict[int, frozenset[int]] = {}

    def patch_lang(function: FunctionType) -> Any:
        names = function.__globals__
        if id(names) not in seen:
            modules = (value for value in names.values() if inspect.ismodule(value))
            seen[id(names)] = frozenset(id(each) for each in modules if each in LANGUAGES)
        parts = seen[id(names)]
        if parts and parts <= patched:
            return None  # what a launch takes back is never this: it begins with nothing patched
        patched.update(parts)
        return patch(function)

    interpreter._patch_lang = patch_lang
    executor = interpreter.GridExecutor
    executor.__call__ = _beginning(executor.__call__, patched)


def _beginning(launch: Callable[..., Any], patched: set[int]) -> Callable[..., Any]:
    @wraps(launch)
    def begin(*args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return launch(*args, **kwargs)
        finally:
            patched.clear()

    return begin
