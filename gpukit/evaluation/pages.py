"""What pages are made with: one HTML file each, that asks nobody for anything.

What is in it of models and texts is hostile: whatever the template puts out is made visible and
escaped, the JSON has no "<", and a policy in the page forbids every script and every request.
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("pages.css")
NONE = "–"
# Of a longer word a page shows the beginning; the JSON has all of it.
WORDS = 400
# Marks that pile up on one character; more are shown by number.
MARKS = 2


def rendered(template: Path, **values: Any) -> str:
    """The page of `template`, a file of Jinja, and `values`; `style` is the style of all pages."""
    # What no page is asked for need not wait for.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else _shown(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = environment.from_string(template.read_text(encoding="utf-8"))
    return found.render(style=Markup(STYLE.read_text(encoding="utf-8").rstrip()), **values)


def as_script(document: Mapping[str, Any]) -> Any:
    """The document as JSON that can stand in a script element whatever is in it."""
    from markupsafe import Markup

    text = json.dumps(document, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _shown(text: str) -> str:
    found = visible(text[: WORDS + 1])
    return found if len(found) <= WORDS else f"{found[:WORDS]}…"


def number(value: Any, digits: int = 4, sign: str = "") -> str:
    """A number with `digits` behind the point; a value that is none as a word."""
    if value is None:
        return NONE
    if isinstance(value, str):
        return {"NaN": "none", "Infinity": "∞", "-Infinity": "−∞"}[value]
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def percent(value: Any, digits: int = 2, sign: str = "") -> str:
    """A share from 0 to 1 in percent."""
    if value is None or isinstance(value, str):
        return number(value)
    return f"{number(100 * value, digits, sign)} %"


def finite(value: Any) -> Any:
    """`value` without numbers that JSON has none for: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def visible(text: str) -> str:
    """`text` so that a reader sees all of it and nothing in it acts: control characters, those
    that change the direction of what follows and those without a shape become numbers, line
    ends and tabs arrows."""
    found, marks = [], 0
    for character in text:
        kind = unicodedata.category(character)
        marks = marks + 1 if kind.startswith("M") else 0
        found.append(_as_it_is(character, kind) if marks <= MARKS else _code(character))
    return "".join(found)


def _as_it_is(character: str, kind: str) -> str:
    if character == "\n":
        return "↵"
    if character == "\t":
        return "⇥"
    if kind in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return _code(character)
    return character


def _code(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
