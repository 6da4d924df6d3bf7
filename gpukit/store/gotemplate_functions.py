"""The functions of Go's text/template and Ollama's, on Python's values: str, bool, int, float,
list, dict, None for nil, `Record` for a struct.

Source: https://pkg.go.dev/text/template, https://pkg.go.dev/fmt, ollama/template/template.go.
"""

import html
import json
import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

from gpukit.store import gojson

# Characters that a width or a precision of a format may ask for.
MOST_OF_A_WIDTH = 1000
_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?(.)", re.DOTALL)
_KINDS = {bool: "bool", int: "int", float: "float64", str: "string", list: "slice", dict: "map"}


class Record(dict[str, Any]):
    """A struct: a field that it has not is an error, not nil."""


class FunctionError(ValueError):
    """What a function refuses."""


def is_true(value: Any) -> bool:
    """Go's truth: zero, nil and what is empty are false, a struct never is."""
    return isinstance(value, Record) or bool(value)


def kind_of(value: Any) -> str:
    return "nil" if value is None else _KINDS.get(type(value), "struct")


def printed(value: Any, nil: str = "<nil>") -> str:
    """What fmt.Print makes of a value."""
    match value:
        case None:
            return nil
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case float():
            return _general(value)
        case int():
            return str(value)
        case list():
            return "[" + " ".join(map(printed, value)) + "]"
        case Record():
            return "{" + " ".join(map(printed, value.values())) + "}"
        case dict():
            items = (f"{key}:{printed(value[key])}" for key in sorted(value))
            return "map[" + " ".join(items) + "]"
    raise FunctionError(f"{kind_of(value)} cannot be printed")


def _general(value: float) -> str:
    """%v of a float64: the shortest digits, an exponent below -4 and from 21 on."""
    mantissa, _, exponent = repr(value).partition("e")
    if exponent and 0 < int(exponent) < 21:
        return f"{value:.0f}"
    return mantissa.removesuffix(".0") + (f"e{int(exponent):+03d}" if exponent else "")


def _print(*values: Any) -> str:
    parts: list[str] = []
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            parts.append(" ")
        parts.append(printed(value))
    return "".join(parts)


def _printf(pattern: Any, *values: Any) -> str:
    if not isinstance(pattern, str):
        raise FunctionError(f"printf of a {kind_of(pattern)}; its format is a text")
    left = list(values)

    def replaced(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if int(width or 0) > MOST_OF_A_WIDTH or int(precision or 0) > MOST_OF_A_WIDTH:
            raise FunctionError(f"{match[0]} asks for more than {MOST_OF_A_WIDTH} characters")
        if not left:
            return f"%!{verb}(MISSING)"
        text = _verb(verb, left.pop(0), flags, precision)
        size = int(width or 0)
        if "-" in flags:
            return text.ljust(size)
        return text.zfill(size) if "0" in flags and verb in "dfeg" else text.rjust(size)

    text = _VERB.sub(replaced, pattern)
    if left:
        extra = ", ".join(f"{kind_of(value)}={printed(value)}" for value in left)
        text += f"%!(EXTRA {extra})"
    return text


def _verb(verb: str, value: Any, flags: str, precision: str | None) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    digits = int(precision or 0) if precision is not None else None
    if verb in ("v", "s") and (verb == "v" or isinstance(value, str)):
        return printed(value)[:digits]
    if verb == "q" and isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if verb == "t" and isinstance(value, bool):
        return printed(value)
    if verb == "d" and whole:
        return f"{value:+d}" if "+" in flags else str(value)
    if verb in "xXob" and whole:
        return format(value, verb)
    if verb in "xX" and isinstance(value, str):
        return value.encode().hex() if verb == "x" else value.encode().hex().upper()
    if verb == "c" and whole:
        return chr(value)
    if verb in "feg" and isinstance(value, float):
        size = 6 if digits is None else digits
        return _general(value) if verb == "g" and digits is None else f"{value:.{size}{verb}}"
    return (
        f"%!{verb}({kind_of(value)}={printed(value)})" if value is not None else f"%!{verb}(<nil>)"
    )


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise FunctionError("eq compares with nothing")
    return any(_same(first, other) for other in others)


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if kind_of(one) != kind_of(other):
        raise FunctionError(f"{kind_of(one)} and {kind_of(other)} are never equal")
    if isinstance(one, list | dict):
        raise FunctionError(f"a {kind_of(one)} is not compared")
    return bool(one == other)


def _less(one: Any, other: Any) -> bool:
    if kind_of(one) != kind_of(other) or kind_of(one) not in ("int", "float64", "string"):
        raise FunctionError(f"{kind_of(one)} and {kind_of(other)} have no order")
    # Go compares bytes, which for UTF-8 is the order of code points, as Python's is.
    return bool(one < other)


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list | dict) and not isinstance(value, Record):
        return len(value)
    raise FunctionError(f"len of a {kind_of(value)}")


def _at(value: Any, key: Any) -> Any:
    if isinstance(value, dict) and not isinstance(value, Record):
        return value.get(key)
    if not isinstance(value, list | str) or not isinstance(key, int):
        raise FunctionError(f"index of a {kind_of(value)} by a {kind_of(key)}")
    items = value if isinstance(value, list) else value.encode("utf-8", "surrogateescape")
    if not 0 <= key < len(items):
        raise FunctionError(f"index {key} of {len(items)}")
    return items[key]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = _at(value, key)
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, list | str) or len(bounds) > 2 + isinstance(value, list):
        raise FunctionError(f"slice of a {kind_of(value)} with {len(bounds)} numbers")
    items = value if isinstance(value, list) else value.encode("utf-8", "surrogateescape")
    if not all(isinstance(bound, int) for bound in bounds):
        raise FunctionError("slice by what is no whole number")
    start = bounds[0] if bounds else 0
    stop = bounds[1] if len(bounds) > 1 else len(items)
    if not 0 <= start <= stop <= len(items):
        raise FunctionError(f"slice {start} to {stop} of {len(items)}")
    part = items[start:stop]
    return part if isinstance(part, list) else part.decode("utf-8", "surrogateescape")


def _json(value: Any) -> str:
    return gojson.encode(value).decode().rstrip("\n")


def _day(ago: int) -> Callable[[], str]:
    return lambda: (date.today() - timedelta(days=ago)).isoformat()


CALLS: Mapping[str, Callable[..., Any]] = {
    "not": lambda value: not is_true(value),
    "eq": _equal,
    "ne": lambda one, other: not _same(one, other),
    "lt": _less,
    "le": lambda one, other: not _less(other, one),
    "gt": lambda one, other: _less(other, one),
    "ge": lambda one, other: not _less(one, other),
    "len": _len,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "printf": _printf,
    "println": lambda *values: " ".join(map(printed, values)) + "\n",
    "html": lambda *values: html.escape(_print(*values)).replace("&#x27;", "&#39;")
    .replace("&quot;", "&#34;"),
    "json": _json,
    "currentDate": _day(0),
    "yesterdayDate": _day(1),
}  # fmt: skip
