"""How commands print: JSON, tables, and a fault on stderr."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from gpukit.errors import one_line


def complain(message: str) -> None:
    """Tell of a fault in one line on stderr."""
    print("Error: " + one_line(" ".join(message.split())), file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """Print `document` as one line of JSON that every reader takes.

    JSON has no numbers that are not finite: they become "NaN", "Infinity" and "-Infinity". What
    stdout cannot spell, such as bytes of a file that are no UTF-8, is escaped.
    """
    text = _text(document, escaped=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _text(document, escaped=True)
    print(text)


def _text(document: Any, *, escaped: bool) -> str:
    try:
        return json.dumps(document, ensure_ascii=escaped, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(document), ensure_ascii=escaped)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def print_table(rows: Sequence[tuple[str, ...]], indent: str = "") -> None:
    """Print `rows`, as many cells each, in columns that are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print((indent + "    ".join(cells)).rstrip())
