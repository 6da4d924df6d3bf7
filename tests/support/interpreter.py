"""Triton's interpreter without the work that it does over and over.

It puts its own functions in the place of the language's at every call of a `@triton.jit` function
by another, for which it looks through all that the language has: more than half of its time. Once
a launch is enough, since nothing puts them back before its end.

Of the rest a third is what every value of the language is made with, though few shapes and types
occur: names, checked sizes, numpy's types. Those are made once and kept.
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


def keep_shapes_and_types() -> None:
    """From here on what says the shape of a value or of a type is made once for each shape."""
    core = language.core
    core.block_type.__init__ = _kept_block_type(core.block_type.__init__)
    core.tensor.__init__ = _kept_tensor(core.tensor.__init__)
    interpreter._get_np_dtype = _kept_np_dtype(interpreter._get_np_dtype)


def _kept_block_type(make: Callable[..., None]) -> Callable[..., None]:
    """All but `element_ty` is the same for types of equal name; of pointers each is made anew."""
    dtype, constexpr = language.core.dtype, language.core.constexpr
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    @wraps(make)
    def init(self: Any, element_ty: Any, shape: Any) -> None:
        if element_ty.__class__ is not dtype:
            make(self, element_ty, shape)
            return
        sizes = [size.value if size.__class__ is constexpr else size for size in shape]
        key = (element_ty.name, *sizes)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key])
        self.element_ty = element_ty

    return init


def _kept_tensor(make: Callable[..., None]) -> Callable[..., None]:
    """All but `handle`, `type` and `dtype` is the same for equal shapes."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    @wraps(make)
    def init(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape) if type.is_block() else ()
        if key not in known:
            make(self, handle, type)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key])
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return init


def _kept_np_dtype(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Numbers by their name; pointers and whatever else is asked about are looked up each time."""
    dtype, block_type = language.core.dtype, language.core.block_type
    known: dict[str, Any] = {}

    @wraps(find)
    def get(tt_dtype: Any) -> Any:
        scalar = tt_dtype.element_ty if tt_dtype.__class__ is block_type else tt_dtype
        if scalar.__class__ is not dtype:
            return find(tt_dtype)
        if scalar.name not in known:
            known[scalar.name] = find(scalar)
        return known[scalar.name]

    return get


def _beginning(launch: Callable[..., Any], patched: set[int]) -> Callable[..., Any]:
    @wraps(launch)
    def begin(*args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return launch(*args, **kwargs)
        finally:
            patched.clear()

    return begin
