"""Chat templates of a folder, from each place where they can be."""

import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpukit.events import Report, Warned, ignore
from gpukit.formats import gguf_fields
from gpukit.formats.folder import TEMPLATES
from gpukit.tokenizer.files import read_json, read_text, sound


def chat_templates(
    folder: Path, settings: Mapping[str, Any], report: Report = ignore
) -> dict[str, str]:
    """Chat templates by name, from the first place that has one, in transformers' order: files of
    their own, `settings` (tokenizer_config.json), chat_template.json. A single one is "default".

    `report` is told of what is no template and is passed over, as llama.cpp's converter does;
    `TokenizerError` for texts of named ones that are no texts.
    """
    with sound(folder):
        return _templates(folder, settings, report)


def _templates(folder: Path, settings: Mapping[str, Any], report: Report) -> dict[str, str]:
    files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (file := folder / "chat_template.jinja").is_file():
        files = {"default": file} | {n: path for n, path in files.items() if n != "default"}
    found = _named((name, read_text(path)) for name, path in files.items())
    if not found:
        found = _named(_entries(folder, settings.get("chat_template"), report))
    if not found:
        other = read_json(folder / "chat_template.json") or {}
        found = _named(_entries(folder, other.get("chat_template"), report))
    return found


def _entries(folder: Path, found: Any, report: Report) -> Iterator[tuple[str, Any]]:
    """Names and texts of a template or of named ones, as transformers takes them."""
    if isinstance(found, str):
        yield "default", found
    elif isinstance(found, dict):
        yield from found.items()
    elif isinstance(found, list):
        for entry in found:
            if entry.get("template") is not None and "name" in entry:
                yield entry["name"], entry["template"]
            else:
                report(_passed(folder, f"one of its chat templates is {str(entry)[:80]}"))
    elif found is not None:
        report(_passed(folder, f"its chat_template is {str(found)[:80]}"))


def _passed(folder: Path, what: str) -> Warned:
    return Warned(f"{folder}: {what}, not a text by a name: it is passed over")


def _named(entries: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Texts by names that may stand in a key."""
    letters = string.ascii_letters + string.digits
    found: dict[str, str] = {}
    for name, text in entries:
        name = "".join(c if c in letters else "_" for c in name)
        if name and text is not None:
            text.encode()  # a number or half a surrogate pair is no text
            found[name] = text
    return found


def template_fields(named: dict[str, str]) -> Iterator[gguf_fields.Field]:
    """Named templates, the list of their names, and the default."""
    default = named.pop("default", "")
    for name, text in named.items():
        if text:
            yield gguf_fields.string(f"tokenizer.chat_template.{name}", text)
    if named:
        yield gguf_fields.array("tokenizer.chat_templates", gguf_fields.ValueType.STRING, named)
    if default:
        yield gguf_fields.string("tokenizer.chat_template", default)
