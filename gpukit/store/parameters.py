"""Model parameters: their names and types, from Modelfile words to the JSON that is stored."""

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from numbers import Real
from typing import Any

from gpukit.errors import ArgumentError, did_you_mean, unlike
from gpukit.given import texts_of

Value = int | float | bool | str | list[str]

# Names and types as Ollama's api.Options declares them.
TYPES: dict[str, type] = {
    **dict.fromkeys(
        ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict",
         "num_keep", "seed", "num_predict", "top_k", "repeat_last_n"),
        int,
    ),
    **dict.fromkeys(
        ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty",
         "frequency_penalty"),
        float,
    ),
    "use_mmap": bool,
    "stop": list,
}  # fmt: skip

# Dropped with a warning, as Ollama does.
DEPRECATED = frozenset(
    ("penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
     "mirostat", "mirostat_tau", "mirostat_eta")
)  # fmt: skip

# What a model can be run with, and how that is told.
_SENSE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda x: 0 <= x < math.inf, "a finite number from 0 on is needed"),
    **dict.fromkeys(
        ("top_p", "min_p", "typical_p"), (lambda x: 0 <= x <= 1, "it goes from 0 to 1")
    ),
    "repeat_penalty": (lambda x: 0 < x < math.inf, "a finite number over 0 is needed"),
    **dict.fromkeys(
        ("presence_penalty", "frequency_penalty"), (math.isfinite, "a finite number is needed")
    ),
    "num_ctx": (lambda x: x >= 1, "at least 1 token is needed"),
    "seed": (lambda x: x < 1 << 63, f"the largest is {(1 << 63) - 1}"),
}

_WANTED = {int: "a whole number", float: "a number", bool: "True or False"}

_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("0", "f", "F", "false", "False", "FALSE"), False),
}


def deprecated(name: str) -> str:
    """The warning of a parameter that is dropped; '' for another."""
    return f"parameter {name} is deprecated" if name in DEPRECATED else ""


def given(name: str, value: Any) -> Value:
    """`value`, which a program gives, as the PARAMETER lines set it that say the same; of `stop`
    one string is a list of it.

    Raises ArgumentError as `parse`.
    """
    if name == "stop":
        return list(texts_of([value] if isinstance(value, str) else value, "stop: a list of texts"))
    if name not in TYPES:
        return parse(name, "")
    try:
        typed = _typed(name, value)
    except (ArgumentError, OverflowError):
        raise ArgumentError(unlike(f"{name}: {_WANTED[TYPES[name]]}", value)) from None
    return parse(name, _word(typed))


def parse(name: str, text: str) -> Value:
    """The value that `PARAMETER name text` sets; a `stop` gives its one string.

    Floats are rounded to float32 and given as the float64 nearest to its shortest decimal form,
    as they come out of Ollama's requests. Raises ArgumentError for an unknown name, a value of
    the wrong kind, and as `check`.
    """
    value = _parsed(name, text)
    if isinstance(value, int | float):
        check(name, value)
    return value


def _parsed(name: str, text: str) -> Value:
    kind = TYPES.get(name)
    if kind is None:
        raise ArgumentError(
            f"unknown parameter '{_shown(name)}' (known: {', '.join(sorted(TYPES))})"
            f"{did_you_mean(name, TYPES)}"
        )
    if kind is list:
        return text
    if kind is bool:
        if text not in _BOOLS:
            raise ArgumentError(f"invalid bool value [{_shown(text)}] for {name}: true or false")
        return _BOOLS[text]
    if kind is int:
        if not _INT.fullmatch(text) or (number := _int64(text)) is None:
            raise ArgumentError(f"invalid int value [{_shown(text)}] for {name}: a whole number")
        return number
    if not _FLOAT.fullmatch(text) or (value := _float32(text)) is None:
        raise ArgumentError(f"invalid float value [{_shown(text)}] for {name}: a number")
    return value


def check(name: str, value: Real | float, whose: str = "") -> None:
    """`ArgumentError` for a number with which no model can be run; `whose` it is, begins it."""
    known, told = _SENSE.get(name, (lambda _: True, ""))
    if not known(value):
        raise ArgumentError(f"{whose}{name} is {value}; {told}")


def merge(base: Mapping[str, Value], changes: Mapping[str, Value]) -> dict[str, Value]:
    """`base` with `changes` over it, key by key (lists are replaced), keys sorted."""
    both = {**base, **changes}
    return {key: both[key] for key in sorted(both)}


def stored(values: Mapping[str, Value]) -> dict[str, Value]:
    """`values` as they are stored: every number has passed through a float64, keys are sorted."""
    return {key: _through_float(values[key]) for key in sorted(values)}


def from_json(value: Any) -> dict[str, Value]:
    """A stored JSON object in the types of `TYPES`; keys unknown to this version are kept.

    Raises ArgumentError for a value of the wrong kind, with Ollama's words.
    """
    if not isinstance(value, dict):
        raise ArgumentError("the parameters are no JSON object")
    return {key: _typed(key, item) for key, item in value.items()}


def _typed(name: str, value: Any) -> Value:
    kind = TYPES.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and number and -(2**63) <= value < 2**63 and value == int(value):
        return int(value)
    if kind is float and number:
        return float(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is list and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [str(item) for item in value]
    if kind is None and isinstance(value, int | float | str | list):
        return value
    wanted = "array of strings" if kind is list else getattr(kind, "__name__", "value")
    raise ArgumentError(f'option "{name}" must be of type {wanted}')


def words(values: Mapping[str, Value]) -> Iterable[tuple[str, str]]:
    """Each value as the words of its PARAMETER lines, sorted by name; one line a stop string."""
    for name in sorted(values):
        value = values[name]
        for item in value if isinstance(value, list) else [value]:
            yield name, _word(item)


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    return str(value)


def _through_float(value: Value) -> Value:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _int64(text: str) -> int | None:
    """The whole number `text` if it fits into 64 bits; of a long one not every digit is read."""
    digits = text.lstrip("+-").lstrip("0")
    if len(digits) > 19:
        return None
    number = int(digits or "0") * (-1 if text.startswith("-") else 1)
    return number if -(2**63) <= number < 2**63 else None


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _float32(text: str) -> float | None:
    """`text` rounded to float32, as the float64 of its shortest decimal; None if too large."""
    packed = _pack(float(text))
    if packed is None:
        return None
    (value,) = struct.unpack("<f", packed)
    if value == 0:
        return float(value)
    exact = Decimal(value)
    # The shortest decimal that reads back as the same float32; of these the nearest, of two
    # equally near the one with an even last digit.
    for digits in range(1, 10):
        unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
        both = [exact.quantize(unit, rounding) for rounding in (ROUND_FLOOR, ROUND_CEILING)]
        if good := [short for short in both if _pack(float(short)) == packed]:
            return float(min(good, key=lambda d: (abs(d - exact), d.as_tuple().digits[-1] % 2)))
    raise AssertionError("nine digits name every float32")


def _pack(value: float) -> bytes | None:
    if math.isinf(value):
        return None
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return None
