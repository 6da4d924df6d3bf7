"""A tokenizer from GGUF metadata that gives the ids of llama.cpp.

Special tokens are cut out first, longest text first; what is left goes to a library: sentencepiece
for "llama" vocabularies, tokenizers for byte-level BPE. Source: src/llama-vocab.cpp of llama.cpp.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, ValueType
from gpukit.tokenizer import backends
from gpukit.tokenizer.types import TokenType

# Texts that end a generation wherever a vocabulary has them.
END_TEXTS = frozenset({
    "</s>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>",
    "<|end_of_text|>", "<|return|>", "<|call|>", "<|eot|>", "<EOT>", "_<EOT>", "<|EOT|>",
})  # fmt: skip


class Backend(Protocol):
    """What cuts plain text into ids, and the bytes that a plain token stands for."""

    add_space_prefix: bool
    add_bos: bool
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, text: str, kind: TokenType) -> bytes: ...


class Tokenizer:
    """Text to ids and back; see `from_fields`."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self.tokens: Sequence[str] = self._array("tokens", ValueType.STRING)
        self.n_vocab = len(self.tokens)
        self.types = self._types()
        self._backend = self._make_backend()
        self.bos_id = self._id("bos", self._backend.bos_id)
        self.eos_id = self._id("eos", self._backend.eos_id)
        self.add_bos: bool = self._flag("add_bos_token", self._backend.add_bos)
        self.add_eos: bool = self._flag("add_eos_token", False)
        self._add_space_prefix = self._flag("add_space_prefix", self._backend.add_space_prefix)
        self.chat_template: str | None = self._get("tokenizer.chat_template")
        self.eog_ids = frozenset(self._ends())
        self._specials = {
            text: number
            for number, (text, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN) and text
        }
        plain = [t for t, n in self._specials.items() if self.types[n] is TokenType.USER_DEFINED]
        self._always = _any_of(plain)
        self._all = _any_of(self._specials)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Field]) -> "Tokenizer":
        """The tokenizer that the metadata of a GGUF describes.

        `TokenizerError` for a vocabulary that is missing, of an unknown kind or contradicts itself.
        """
        return cls(fields)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The ids of `text`; with `add_special` BOS and EOS where the model wants them, with
        `parse_special` control tokens that stand in the text become their ids."""
        ids: list[int] = []
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        after_special = True
        for piece, special in self._parts(text, self._all if parse_special else self._always):
            if special is not None:
                ids.append(special)
            else:
                prefix = " " if self._add_space_prefix and after_special else ""
                ids.extend(self._backend.encode(prefix + piece))
            after_special = special is not None
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _parts(
        self, text: str, pattern: re.Pattern[str] | None
    ) -> Iterator[tuple[str, int | None]]:
        """Plain pieces and special tokens (text, id) in the order of the text."""
        at = 0
        for match in pattern.finditer(text) if pattern is not None else ():
            if match.start() > at:
                yield text[at : match.start()], None
            yield match[0], self._specials[match[0]]
            at = match.end()
        if at < len(text):
            yield text[at:], None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: control tokens are silent, broken UTF-8 becomes U+FFFD."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> "TextStream":
        """A decoder for ids that come one by one."""
        return TextStream(self)

    def token_text(self, number: int) -> str:
        """The token as the vocabulary spells it."""
        return self.tokens[number]

    def token_bytes(self, number: int) -> bytes:
        """The bytes of text that a token stands for; none for control tokens."""
        kind = self.types[number]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED):
            return b""
        if kind is TokenType.USER_DEFINED:
            return self.tokens[number].encode("utf-8", "surrogateescape")
        return self._backend.token_bytes(self.tokens[number], kind)

    @property
    def drops_first_space(self) -> bool:
        """Whether the space that encoding puts in front is taken off again."""
        return self._add_space_prefix

    def _get(self, name: str) -> Any:
        field = self._fields.get(name)
        return None if field is None else field.value

    def _flag(self, name: str, default: bool) -> bool:
        value = self._get(f"tokenizer.ggml.{name}")
        return default if value is None else bool(value)

    def _array(self, name: str, item: ValueType) -> list[Any]:
        field = self._fields.get(f"tokenizer.ggml.{name}")
        if field is None:
            raise TokenizerError(f"no tokenizer.ggml.{name} in the metadata: no vocabulary to use")
        if field.type is not ValueType.ARRAY or field.item is not item:
            raise TokenizerError(f"tokenizer.ggml.{name} is no array of {item.name}")
        values: list[Any] = field.value
        return values

    def _types(self) -> list[TokenType]:
        if "tokenizer.ggml.token_type" not in self._fields:
            return [TokenType.NORMAL] * self.n_vocab
        numbers = self._array("token_type", ValueType.INT32)
        if len(numbers) < self.n_vocab:
            raise TokenizerError(f"{len(numbers)} token types for {self.n_vocab} tokens")
        known = {int(kind): kind for kind in TokenType}
        return [known.get(number, TokenType.NORMAL) for number in numbers[: self.n_vocab]]

    def _id(self, name: str, default: int | None) -> int | None:
        value = self._get(f"tokenizer.ggml.{name}_token_id")
        value = default if value is None else value
        if value is None or value == 0xFFFFFFFF:
            return None
        if not isinstance(value, int) or not 0 <= value < self.n_vocab:
            if name in ("bos", "eos") and self._get(f"tokenizer.ggml.{name}_token_id") is None:
                return None
            raise TokenizerError(f"{name}_token_id is {value}, the vocabulary has {self.n_vocab}")
        return value

    def _ends(self) -> Iterator[int]:
        for name in ("eos", "eot", "eom"):
            number = self._id(name, self.eos_id if name == "eos" else None)
            if number is not None:
                yield number
        for number, text in enumerate(self.tokens):
            if text in END_TEXTS:
                yield number

    def _make_backend(self) -> Backend:
        model = self._get("tokenizer.ggml.model")
        if model == "llama":
            scores = self._array("scores", ValueType.FLOAT32)
            if len(scores) < self.n_vocab:
                raise TokenizerError(f"{len(scores)} scores for {self.n_vocab} tokens")
            return backends.SentencePiece(self.tokens, scores, self.types)
        if model == "gpt2":
            merges = self._array("merges", ValueType.STRING)
            return backends.ByteLevel(self.tokens, merges, self._get("tokenizer.ggml.pre"))
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}; llama and gpt2 can be run")


class TextStream:
    """Ids in, text out, never half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, number: int) -> str:
        """The text that became whole with this token."""
        data = self._tokenizer.token_bytes(number)
        if self._first and data:
            self._first = False
            if self._tokenizer.drops_first_space and data.startswith(b" "):
                data = data[1:]
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: broken bytes as U+FFFD."""
        return self._decoder.decode(b"", final=True)

    def continued(self) -> "TextStream":
        """This stream in the middle of a text, where no leading space is taken off."""
        self._first = False
        return self


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the longest of `texts` at the leftmost place."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
