"""How large the results of operators, methods and filters are, told before they are made.

Each guard takes what its operation takes and gives characters at most; what has no guard
makes no more than a few times what it is given.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

from gpukit.chat.bounds import CURRENT, MEMBER, Exceeded, weigh

# Bits of a whole number.
MOST_BITS = 1 << 16
# Steps of what compares every character with every other.
MOST_STEPS = 1 << 24
# Digits behind a point that rounding may be asked for: a float has no more.
MOST_DIGITS = 400
PLAIN_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
    "istitle", "isupper", "lower", "partition", "removeprefix", "removesuffix", "split",
    "splitlines", "startswith", "swapcase", "title", "upper",
))  # fmt: skip
NUMBER_METHODS = frozenset(("bit_length", "is_integer"))
_NUMBERS = re.compile(r"[0-9]+")
# A width that is a value itself, such as %*d or {:{width}}.
_WIDTHS = {"%": re.compile(r"%[^a-zA-Z%]*\*"), "{": re.compile(r"\{[^{}]*\{")}


def padded(text: str, width: int = 80, *_: Any) -> int:
    return max(len(text), int(width))


def tabbed(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * max(int(tabsize), 0)


def replaced(text: str, old: str, new: str, *_: Any, **__: Any) -> int:
    return len(text) + text.count(old) * len(new)


def indented(text: str, width: int | str = 4, *_: Any, **__: Any) -> int:
    each = len(width) if isinstance(width, str) else max(int(width), 0)
    return len(text) + (text.count("\n") + 1) * each


def joined(items: Any, between: str = "", *_: Any, **__: Any) -> int:
    return weigh(items) + len(items) * len(between)


def formatted(pattern: str, values: Any, sign: str = "%") -> int:
    """`pattern % values` or, with the sign `{`, `pattern.format(values)`."""
    if _WIDTHS[sign].search(pattern):
        raise SecurityError("a width in a format that is a value itself")
    widths = sum(int(digits[:20]) for digits in _NUMBERS.findall(pattern))
    return len(pattern) + widths + pattern.count(sign) * weigh(values)


def compared(text: str, other: Any = None, *_: Any) -> int:
    """Trimming, and searching from the right, which compares each character with each."""
    if isinstance(other, str) and len(text) * len(other) > MOST_STEPS:
        raise Exceeded(f"it compares texts of {len(text)} and {len(other)} characters")
    return len(text)


METHODS: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(PLAIN_METHODS, lambda text, *_, **__: len(text)),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"),
                    lambda text, *arguments, **_: compared(text, *arguments)),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), padded),
    "expandtabs": tabbed,
    "replace": replaced,
    "join": lambda text, items: joined(items, text),
    "format": lambda text, *values, **named: formatted(text, [values, named], "{"),
    "format_map": lambda text, named: formatted(text, named, "{"),
}  # fmt: skip


def _batch(_: Any, linecount: int, fill_with: Any = None) -> int:
    del fill_with
    return MEMBER * int(linecount)


def _slice(_: Any, slices: int, fill_with: Any = None) -> int:
    del fill_with
    return MEMBER * int(slices)


def _trim(text: Any, chars: str | None = None) -> int:
    return compared(str(text), chars)


def _round(_: Any, precision: int = 0, method: str = "common") -> int:
    del method
    if abs(precision) > MOST_DIGITS:
        raise Exceeded(f"it rounds to {precision} digits; {MOST_DIGITS} at most")
    return 1


def _sum(_: Any, attribute: Any = None, start: Any = 0) -> int:
    del attribute
    if not isinstance(start, int | float):
        raise SecurityError("a sum of anything but numbers")
    return 1


FILTERS: Mapping[str, Callable[..., int]] = {
    "batch": _batch,
    "center": lambda text, width=80: padded(str(text), width),
    "format": lambda text, *values, **named: formatted(str(text), [values, named]),
    "indent": indented,
    "join": lambda items, d="", *_, **__: joined(items, d),
    "replace": lambda text, old, new, *_, **__: replaced(str(text), str(old), str(new)),
    "round": _round,
    "slice": _slice,
    "sum": _sum,
    "trim": _trim,
}  # fmt: skip


def operated(sign: str, left: Any, right: Any) -> None:
    """`Exceeded` where `left` and `right` would make something too large."""
    fits = CURRENT.get().fits
    if sign == "%" and isinstance(left, str):
        fits(formatted(left, right))
    elif isinstance(left, int) and isinstance(right, int):
        _whole(sign, left, right)
    elif sign == "*":
        for many, count in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(count, int):
                fits(_size(many) * count)
    elif sign == "+" and isinstance(left, str | list | tuple) and hasattr(right, "__len__"):
        fits(_size(left) + _size(right))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else MEMBER * len(value)


def _whole(sign: str, left: int, right: int) -> None:
    bits = left.bit_length()
    if sign == "**":
        bits *= max(right, 1)
    elif sign == "*":
        bits += right.bit_length()
    if bits > MOST_BITS:
        raise Exceeded(f"it makes a number of more than {MOST_BITS} bits")
