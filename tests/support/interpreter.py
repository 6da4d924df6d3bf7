"""Triton's interpreter without the work that it does over and over.

It puts its own functions in the place of the language's at every call of a `@triton.jit` function
by another, for which it looks through all that the language has: more than half of its time. Once
a launch is enough, since nothing puts them back before its end.

Of the rest a third is what every value of the language is made with, though few shapes and types
occur: names, checked sizes, numpy's types. Those are made once and kept. Another third is what an
operation looks for in its two values, which mostly are alike: sums that overflow, which are only
told where kernels are debugged, a common type and a common shape.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from numbers import Number
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


def alike_at_once() -> None:
    """From here on operations take values of one type and shape as they are, and numbers as they
    were made for the same type and shape before.

    Does nothing with a Triton whose interpreter is built otherwise, as above.
    """
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if builder and hasattr(options, "sanitize_overflow") and not options.debug:
        builder.options = replace(options, sanitize_overflow=False)  # else it is told
    semantic = type(getattr(interpreter, "interpreter_semantic", None))
    check = getattr(semantic, "binary_op_type_checking_impl", None)
    shaped = language.core.block_type(language.float32, [4]).shape
    known = check is not None and [*inspect.signature(check).parameters][1:] == [*FLAGS]
    if known and hasattr(semantic, "broadcast_impl_value") and hasattr(shaped, "values"):
        semantic.binary_op_type_checking_impl = _quick_check(check)
        semantic.broadcast_impl_value = _quick_broadcast(semantic.broadcast_impl_value)


# Numbers that are kept, and elements of each at most: 64 MB.
KEPT, LARGEST = 256, 1 << 16
# What `binary_op_type_checking_impl` takes.
FLAGS = ("lhs", "rhs", "allow_lhs_ptr", "allow_rhs_ptr", "arithmetic_check", "div_or_mod")


def _quick_check(check: Callable[..., Any]) -> Callable[..., Any]:
    """Values of one type of numbers need no other; a number beside a float32 or an int32 becomes
    one, and is kept."""
    tensor, pointer = language.core.tensor, language.core.pointer_type
    ours = {"fp32": float, "int32": int}
    known: dict[tuple[Any, ...], Any] = {}

    @wraps(check)
    def checked(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        given = (allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
        if div_or_mod or not arithmetic_check or lhs.__class__ is not tensor:
            return check(self, lhs, rhs, *given)
        scalar = lhs.type.scalar
        if rhs.__class__ is tensor:
            other = rhs.type.scalar
            if scalar.__class__ is not pointer and (scalar is other or scalar == other):
                return self.broadcast_impl_value(lhs, rhs)
        elif isinstance(rhs, Number) and rhs.__class__ is ours.get(scalar.name):
            # Zeros of both signs are equal.
            sign = math.copysign(1.0, rhs) if rhs == 0 else 0.0
            key = (scalar.name, rhs, sign, *(lhs.type.shape.values if lhs.type.is_block() else ()))
            found = known.get(key)
            if found is None:
                found = check(self, lhs, rhs, *given)[1]
                if found.handle.data.size <= LARGEST:
                    if len(known) == KEPT:
                        known.clear()
                    known[key] = found
            return lhs, found
        return check(self, lhs, rhs, *given)

    return checked


def _quick_broadcast(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(broadcast)
    def quick(self: Any, lhs: Any, rhs: Any) -> Any:
        one, other = lhs.type, rhs.type
        if one.is_block() and other.is_block():
            shape, wanted = one.shape, other.shape
            if shape is wanted or shape.values == wanted.values:
                return lhs, rhs
        return broadcast(self, lhs, rhs)

    return quick


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
