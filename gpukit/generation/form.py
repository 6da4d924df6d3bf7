"""Answers of a form: of all tokens, only those that keep an answer on its way to it can be picked.

llguidance, an extra, knows the grammars (https://github.com/guidance-ai/llguidance).
"""

import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from gpukit.errors import ArgumentError, GpukitError
from gpukit.tokenizer import Tokenizer
from gpukit.tokenizer.types import TokenType

# "json", or a JSON schema.
Format = str | Mapping[str, Any]
# Between the parts of a JSON text, so that a model that has nothing to say does not say blanks.
BLANKS = r"[ \t\n\r]{0,16}"
SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
_VOCABULARIES: "WeakKeyDictionary[Tokenizer, Any]" = WeakKeyDictionary()


def grammar_of(form: Format) -> str:
    """The grammar of `form`; `ArgumentError` for what is none, or where llguidance is missing."""
    guidance = _guidance()
    if isinstance(form, str) and form != "json":
        raise ArgumentError(f"format is {form[:40]!r}; json, or a JSON schema")
    schema = {"type": "object"} if isinstance(form, str) else form
    overrides = {"whitespace_pattern": BLANKS}
    try:
        text = json.dumps(schema)
        grammar: str = guidance.LLMatcher.grammar_from_json_schema(text, overrides=overrides)
        fault = guidance.LLMatcher.validate_grammar(grammar, None)
    except (TypeError, ValueError, RecursionError) as error:
        fault = str(error)
    if fault:
        raise ArgumentError(f"format: {_one_line(fault)}")
    return grammar


class Form:
    """One answer on its way to a form."""

    def __init__(self, form: Format, tokenizer: Tokenizer) -> None:
        grammar = grammar_of(form)
        self._matcher = _guidance().LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
        self._check()

    @property
    def done(self) -> bool:
        """Whether the answer is whole and nothing can come behind it."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: Tensor) -> Tensor:
        """`logits` `[vocab]` on the CPU, minus infinity for tokens that cannot come now."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")).bool()
        found = torch.full_like(logits, float("-inf"), device="cpu", dtype=torch.float32)
        count = min(len(allowed), len(found))
        places = torch.nonzero(allowed[:count]).squeeze(1)
        found[places] = logits.to("cpu", torch.float32)[places]
        return found

    def take(self, token: int) -> None:
        """Note that `token` was picked."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if fault := self._matcher.get_error():
            raise GpukitError(f"format: {_one_line(fault)}")


def _one_line(fault: str) -> str:
    """A message of llguidance without the lines of carets, which point at the line above."""
    lines = [line.strip() for line in fault.splitlines() if line.strip(" ^")]
    return "\n".join(lines).replace("\nerror: ", ": ").replace("\n", " ")[:300]


def _guidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ArgumentError(
            "format needs llguidance, which is not installed: pip install 'gpukit[format]'"
        ) from None
    return llguidance


class _Words:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        numbers = range(tokenizer.n_vocab)
        special = {n for n in numbers if tokenizer.types[n] in SPECIAL} | tokenizer.eog_ids
        self.tokens = [
            tokenizer.token_text(n).encode("utf-8", "surrogateescape")
            if n in special
            else tokenizer.token_bytes(n)
            for n in numbers
        ]
        self.special_token_ids = sorted(special)
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(tokenizer.eog_ids, default=tokenizer.n_vocab - 1)

        self._plain = {self.tokens[n]: n for n in reversed(numbers) if n not in special}
        self._longest = max(map(len, self._plain), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The ids of bytes that the form leaves no choice about, longest tokens first: they stand
        in the middle of a text, and encoding could put a space in front."""
        ids, at = [], 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((n for n in sizes if text[at : at + n] in self._plain), 0)
            if not size:
                break
            ids.append(self._plain[text[at : at + size]])
            at += size
        return ids


def _vocabulary(tokenizer: Tokenizer) -> Any:
    if tokenizer not in _VOCABULARIES:
        guidance, words = _guidance(), _Words(tokenizer)
        _VOCABULARIES[tokenizer] = guidance.LLTokenizer(
            guidance.TokenizerWrapper(words),
            n_vocab=tokenizer.n_vocab,
            eos_token=sorted(tokenizer.eog_ids) or [words.eos_token_id],
        )
    return _VOCABULARIES[tokenizer]
