"""tokenizer.json, the file of the tokenizers library: its tokens, and the order of its merges."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.tokenizer.added import library_tokens, token_id
from gpukit.tokenizer.files import read_json
from gpukit.tokenizer.merges import Pair
from gpukit.tokenizer.pieces import Piece
from gpukit.tokenizer.types import TokenType


class Library:
    """A tokenizer.json: its `data`, `model` (empty where it has none), the tokens `added`."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path, self.data = path, data
        model = data.get("model")
        self.model: Mapping[str, Any] = model if isinstance(model, dict) else {}
        self.added = library_tokens(data, path)

    @property
    def is_bpe(self) -> bool:
        return bool(self.model) and self.model.get("type", "BPE") == "BPE"

    @property
    def byte_fallback(self) -> bool:
        """Whether it is a BPE made from a sentencepiece model."""
        return self.is_bpe and bool(self.model.get("byte_fallback"))

    @property
    def byte_level(self) -> bool:
        """Whether it is a BPE over bytes, which no sentencepiece model is."""
        return self.is_bpe and "ByteLevel" in self._steps("pre_tokenizer", "pretokenizers")

    @property
    def puts_space(self) -> bool:
        """Whether a space goes in front of a text."""
        if "Prepend" in self._steps("normalizer", "normalizers"):
            return True
        space = self._steps("pre_tokenizer", "pretokenizers").get("Metaspace", {})
        scheme = space.get("prepend_scheme", "always" if space else "never")
        return scheme != "never" and space.get("add_prefix_space") is not False

    def _steps(self, key: str, inner: str) -> dict[str, Mapping[str, Any]]:
        """The steps at `key` by their types, those of a sequence one by one."""
        step = self.data.get(key)
        steps = [step, *_list(step.get(inner))] if isinstance(step, dict) else []
        return {str(s.get("type")): s for s in steps if isinstance(s, dict)}

    def check(self) -> None:
        """`TokenizerError` for a model that a GGUF cannot hold."""
        if not self.is_bpe:
            kind = str(self.model.get("type"))[:40]
            raise TokenizerError(f"{self.path}: model {kind!r}; BPE can be imported")
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(key):
                shown = str(self.model[key])[:40]
                raise TokenizerError(f"{self.path}: {key} {shown!r}; a GGUF cannot say that")

    @cached_property
    def texts(self) -> dict[int, str]:
        """The text of each token of the model by its id; added ones are not counted."""
        vocabulary = self.model.get("vocab")
        added = self.data.get("added_tokens") or []
        if not isinstance(vocabulary, dict) or not isinstance(added, list):
            raise TokenizerError(f"{self.path}: no vocab or added_tokens")
        return {token_id(number, self.path): text for text, number in vocabulary.items()}

    def fitting(self, size: int) -> dict[int, str]:
        """`texts` without the added tokens past `size`; `TokenizerError` for others there."""
        added = {entry.number for entry in self.added}
        outside = [number for number in self.texts if number >= size]
        if any(number not in added for number in outside):
            raise TokenizerError(
                f"{self.path}: token id {max(outside)}, config.json has a vocab_size of {size}; "
                "the model has no embedding for it"
            )
        return {number: text for number, text in self.texts.items() if number < size}

    def agrees(self, pieces: Sequence[Piece]) -> bool:
        """Whether `pieces`, of a sentencepiece model, are the tokens of this file, but for added
        ones; a byte may be spelled as a character here."""
        added = {entry.number for entry in self.added}
        return all(
            number in added or (number < len(pieces) and _same(pieces[number], text))
            for number, text in self.texts.items()
        )

    def scores(self) -> dict[str, float]:
        """Of each text that merges make, minus the rank of the first that does: what merges by
        score, the highest first, then merges in the order of this file."""
        ranks: dict[str, float] = {}
        for rank, pair in enumerate(self.merges):
            ranks.setdefault("".join(pair), -float(rank))
        return ranks

    @property
    def merges(self) -> list[Pair]:
        """The merges, the first before the others."""
        pairs = []
        for merge in _list(self.model.get("merges")):
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(parts, list) or len(parts) != 2 or not all(map(_is_text, parts)):
                raise TokenizerError(f"{self.path}: merge {str(merge)[:60]!r} is no pair")
            pairs.append((parts[0], parts[1]))
        return pairs


def read_library(folder: Path) -> Library | None:
    """The tokenizer.json in `folder`, None where there is none."""
    path = folder / "tokenizer.json"
    data = read_json(path)
    return None if data is None else Library(path, data)


def _same(piece: Piece, text: str) -> bool:
    return piece.text == text or piece.kind is TokenType.BYTE


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
