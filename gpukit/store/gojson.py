"""JSON as Go's encoding/json writes it, the bytes that digests in the store depend on, and as it
reads it."""

import json
import math
import re
from typing import Any, NoReturn

from gpukit.formats.nesting import check_nesting

# Escaped so that the text may stand inside HTML and JavaScript.
_ESCAPES = str.maketrans(
    {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
)


def encode(value: Any) -> bytes:
    """`value` on one line without spaces, a newline at the end; keys stay in their order.

    Floats are printed in the shortest form that reads back as the same float64: `1` for 1.0,
    an exponent only below 1e-6 and from 1e21 on. Lone surrogates become U+FFFD.
    Raises ValueError for NaN and infinity, which JSON cannot hold.
    """
    return (_encode(value) + "\n").encode("utf-8", "replace")


def _encode(value: Any) -> str:
    if isinstance(value, dict):
        items = ",".join(f"{_string(str(key))}:{_encode(item)}" for key, item in value.items())
        return f"{{{items}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_encode, value))}]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return number(value)
    return json.dumps(value)


def _string(text: str) -> str:
    return json.dumps(_whole(text), ensure_ascii=False).translate(_ESCAPES)


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# The digits of the largest float64 before the point.
_MOST_DIGITS = 309


def decode(data: bytes) -> Any:
    """What JSON text says; bytes that are no UTF-8, and lone surrogates, become U+FFFD.

    Raises ValueError for what is no JSON, for numbers beyond a float64 and NaN, which Go refuses,
    and for what is nested too deeply.
    """
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_float, parse_int=_int)
        check_nesting(value)
        return _without_surrogates(value) if _SURROGATE.search(text) else value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text if len(text) < 40 else f'{text[:40]}…'} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _int(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS or not math.isfinite(float(text)):
        _refused(text)
    return int(text)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _without_surrogates(item) for key, item in value.items()}
    return value


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def number(value: float) -> str:
    """The float64 `value` in Go's form: `0.6`, `1`, `1e-7`, `1e+21`."""
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be written as JSON")
    sign, digits, point = _shortest(value)
    if value != 0 and not 1e-6 <= abs(value) < 1e21:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        power = point - 1
        return f"{sign}{digits[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power)}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}" if digits != "0" else f"{sign}0"
    whole = digits[:point].ljust(point, "0")
    return f"{sign}{whole}.{digits[point:]}" if len(digits) > point else f"{sign}{whole}"


def _shortest(value: float) -> tuple[str, str, int]:
    """Sign, digits without outer zeros, and where the decimal point stands among them."""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    sign = "-" if math.copysign(1, value) < 0 else ""
    digits = digits.rstrip("0")
    return (sign, digits, point) if digits else (sign, "0", 1)
