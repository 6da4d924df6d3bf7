"""Tokens added after training: every place where a model folder declares them.

added_tokens.json (text: id), added_tokens_decoder in tokenizer_config.json, added_tokens in
tokenizer.json; and the texts that tokenizer_config.json and special_tokens_map.json call special.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.tokenizer.files import read_json
from gpukit.tokenizer.types import SPACE, TokenType

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Lists of texts, or objects of texts by names of their own.
MORE = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


@dataclass(frozen=True)
class Added:
    """A token that a file declares; `normalized` tells whether it is looked for in normalised
    text."""

    number: int
    text: str
    special: bool = False
    normalized: bool = False

    @property
    def kind(self) -> TokenType:
        """Control tokens are silent; others are looked for in every text."""
        control = self.special or looks_special(self.text)
        return TokenType.CONTROL if control else TokenType.USER_DEFINED

    @property
    def spelled(self) -> str:
        """The text as it is looked for in a text that is not normalised."""
        return self.text if self.kind is TokenType.CONTROL else self.text.replace(SPACE, " ")


def added_tokens_file(folder: Path) -> Iterator[Added]:
    """The tokens in added_tokens.json."""
    path = folder / "added_tokens.json"
    for text, number in (read_json(path) or {}).items():
        yield Added(token_id(number, path), text)


def added_tokens_decoder(folder: Path) -> Iterator[Added]:
    """The tokens in tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    decoder = (read_json(path) or {}).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{path}: added_tokens_decoder is no object")
    for key, entry in decoder.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{path}: added_tokens_decoder: {key!r} has no content")
        yield _added(token_id(key, path), entry)


def added_tokens_of_library(folder: Path) -> list[Added]:
    """The tokens in tokenizer.json."""
    path = folder / "tokenizer.json"
    return library_tokens(read_json(path) or {}, path)


def library_tokens(data: Mapping[str, Any], path: Path) -> list[Added]:
    """The added tokens of a tokenizer.json that has been read."""
    entries = data.get("added_tokens") or []
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{path}: an added token has no content")
        found.append(_added(token_id(entry.get("id"), path), entry))
    return found


def _added(number: int, entry: Mapping[str, Any]) -> Added:
    special, normalized = bool(entry.get("special")), bool(entry.get("normalized"))
    return Added(number, entry["content"], special, normalized)


def token_id(value: Any, path: Path) -> int:
    """`value` as an id; `TokenizerError` where it is none."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0:
        raise TokenizerError(f"{path}: {str(value)[:80]!r} is no token id")
    return number


def looks_special(text: str) -> bool:
    """Whether a token that is not marked special is one by its looks."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def special_texts(folder: Path) -> list[str]:
    """What the settings call special, whatever the token's own entry says, as transformers: those
    of special_tokens_map.json count where tokenizer_config.json has no added_tokens_decoder."""
    settings = read_json(folder / "tokenizer_config.json") or {}
    found = list(_named(settings))
    if "added_tokens_decoder" not in settings:
        found += _named(read_json(folder / "special_tokens_map.json") or {})
    return list(dict.fromkeys(found))


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    entries = [settings.get(key) for key in NAMED]
    for key in MORE:
        more = settings.get(key)
        if isinstance(more, dict):
            entries += more.values()
        elif isinstance(more, list):
            entries += more
    yield from (text for entry in entries if (text := text_of(entry)))


def text_of(entry: Any) -> str | None:
    """The text of a token that settings name by it, or by an object."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None
