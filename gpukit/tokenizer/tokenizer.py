"""A tokenizer from GGUF metadata that gives the ids of llama.cpp.

Special tokens are cut out first, longest text first; what is left goes to a library: sentencepiece
for "llama" vocabularies, tokenizers for byte-level BPE. Source: src/llama-vocab.cpp of llama.cpp.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, ValueType
from gpukit.tokenizer import backends
from gpukit.tokenizer.pretokenizers import rules_of
from gpukit.tokenizer.specials import FILL_TEXTS, Specials, corrected
from gpukit.tokenizer.types import TokenType


class Backend(Protocol):
    """What cuts plain text into ids, and the bytes that a plain token stands for."""

    add_space_prefix: bool
    add_bos: bool
    bos_id: int | None
    eos_id: int | None
    cleans: bool

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, text: str, kind: TokenType) -> bytes: ...


class Tokenizer:
    """Text to ids and back; see `from_fields`."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self.tokens: Sequence[str] = self._tokens()
        self.n_vocab = len(self.tokens)
        kinds = ("eos", "eot", "eom", *FILL_TEXTS)
        named = {kind: self._id(kind, None) for kind in kinds}
        self.types, ends = corrected(self.tokens, self._types(), named)
        self._backend = self._make_backend()
        self.bos_id = self._id("bos", self._backend.bos_id)
        self.eos_id = self._id("eos", self._backend.eos_id)
        self.add_bos: bool = self._flag("add_bos_token", self._backend.add_bos)
        self.add_eos: bool = self._flag("add_eos_token", False)
        self._add_space_prefix = self._flag("add_space_prefix", self._backend.add_space_prefix)
        template = self._get("tokenizer.chat_template")
        self.chat_template: str | None = template if isinstance(template, str) else None
        self.eog_ids = ends if self.eos_id is None else ends | {self.eos_id}
        self.suppress_ids: Sequence[int] = self._suppressed()
        self._specials = Specials(self.tokens, self.types, str(self._get("general.name") or ""))

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
        for part in self._specials.parts(text, control=parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                prefix = " " if self._add_space_prefix and after_special else ""
                ids.extend(self._backend.encode(prefix + part))
            after_special = isinstance(part, int)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: control tokens are silent, broken UTF-8 becomes U+FFFD. Byte-level
        vocabularies that say so lose blanks before punctuation, which a stream cannot know of."""
        data = b"".join(map(self.token_bytes, ids))
        if self.drops_first_space:
            data = data.removeprefix(b" ")
        return (cleaned(data) if self._backend.cleans else data).decode("utf-8", "replace")

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

    def _suppressed(self) -> list[int]:
        """Tokens that no answer has."""
        if "tokenizer.ggml.suppress_tokens" not in self._fields:
            return []
        ids = self._array("suppress_tokens", ValueType.INT32)
        return [number for number in ids if 0 <= number < self.n_vocab]

    def _tokens(self) -> list[str]:
        # C programs read a text up to its first NUL.
        texts = [
            text.partition("\0")[0] or f"[EMPTY_{number}]"
            for number, text in enumerate(self._array("tokens", ValueType.STRING))
        ]
        if len(set(texts)) < len(texts):
            ((twice, count),) = Counter(texts).most_common(1)
            raise TokenizerError(f"tokenizer.ggml.tokens holds {twice[:80]!r} {count} times")
        return texts

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

    def _make_backend(self) -> Backend:
        model = self._get("tokenizer.ggml.model")
        if model == "llama":
            return backends.SentencePiece(self.tokens, self._scores(), self.types)
        if model in ("gpt2", "gemma4"):
            merges = self._array("merges", ValueType.STRING)
            pre = "gemma4" if model == "gemma4" else self._get("tokenizer.ggml.pre")
            rules = rules_of("default" if pre is None else str(pre))
            kind = backends.CharacterLevel if rules.raw else backends.ByteLevel
            return kind(self.tokens, merges, rules)
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}; llama and gpt2 can be run")

    def _scores(self) -> list[float]:
        whole = getattr(self._fields.get("tokenizer.ggml.scores"), "item", None) is ValueType.INT32
        scores = self._array("scores", ValueType.INT32 if whole else ValueType.FLOAT32)
        if len(scores) < self.n_vocab:
            raise TokenizerError(f"{len(scores)} scores for {self.n_vocab} tokens")
        return scores


def cleaned(text: bytes) -> bytes:
    """`text` without blanks before punctuation, around single apostrophes and before the endings
    's, 'm, 're and 've: llama_vocab::impl::detokenize."""
    text = re.sub(rb" (?=[?!.,])", b"", text)
    text = re.sub(rb" ' ", b"'", text)
    return re.sub(rb" (?='(?:[sm]|re|ve))", b"", text)


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
