"""A model card (README.md): text with a front matter in YAML that the Hugging Face hub reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MARK = "---"
# What a merged model says itself; the base's own of these would be about another model.
_KEYS = ("base_model", "base_model_relation", "adapters")


@dataclass(frozen=True)
class Origin:
    """What a model was merged from: the base's name, each adapter's with its weight."""

    base: str
    adapters: Sequence[tuple[str, float]] = ()


def merged_card(text: str | None, name: str, origin: Origin) -> str:
    """The card of the merged model `name`: that of the base, `text`, with base and adapters in its
    front matter; a short one where the base has none."""
    front, body = _parted(text or "")
    if not text:
        adapters = ", ".join(f"{adapter} ({weight:g})" for adapter, weight in origin.adapters)
        behind = f" with the adapters {adapters}" if adapters else ""
        body = [f"# {name}\n", "\n", f"{origin.base}{behind}, merged by gpukit.\n"]
    lines = [f"{MARK}\n", *_without(front), *_facts(origin), f"{MARK}\n", *body]
    return "".join(lines)


def _parted(text: str) -> tuple[list[str], list[str]]:
    """The lines of the front matter and of what follows."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").splitlines(keepends=True)
    if not lines or lines[0].rstrip() != MARK:
        return [], lines
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == MARK:
            return lines[1:number], lines[number + 1 :]
    return [], lines


def _without(front: Sequence[str]) -> Iterator[str]:
    """The lines of a front matter but those of `_KEYS`."""
    left_out = False
    for line in front:
        # A value goes on in lines that are indented, empty ones, and items of a list.
        if line.strip() and line[0] not in " \t-#":
            left_out = line.partition(":")[0].strip("\"' ") in _KEYS
        if not left_out:
            yield line if line.endswith("\n") else f"{line}\n"


def _facts(origin: Origin) -> Iterator[str]:
    # A string of JSON is one of YAML, whatever it holds.
    yield f"base_model:\n- {json.dumps(origin.base)}\nbase_model_relation: merge\n"
    if origin.adapters:
        yield "adapters:\n"
    for name, weight in origin.adapters:
        yield f"- name: {json.dumps(name)}\n  weight: {json.dumps(weight)}\n"
