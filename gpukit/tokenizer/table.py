"""The tokens of a GGUF to be, by id: one for each row of the embedding."""

from gpukit.formats.gguf_fields import Field, ValueType, array, string
from gpukit.tokenizer.added import Added
from gpukit.tokenizer.types import TokenType

# The score of rows without a token, and of added tokens.
PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0

# What is not looked for in plain text, whoever declares it; and what may still become control.
SILENT = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)
PLAIN = (TokenType.NORMAL, TokenType.USER_DEFINED)


class Table:
    """`size` tokens, each `[PADi]` until it is put; `outside` are declared ones past them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._texts = [f"[PAD{number}]" for number in range(size)]
        self._scores = [PAD_SCORE] * size
        self._types = [TokenType.UNUSED] * size
        self._at: dict[str, int] = {}
        self._next = 0
        self.outside: dict[int, str] = {}

    def put(self, number: int, text: str, kind: TokenType, score: float = ADDED_SCORE) -> None:
        """Make `text` the token `number`, unless it is another one already: a vocabulary holds a
        text once."""
        self._next = max(self._next, number + 1)
        if number >= self.size:
            self.outside[number] = text
        elif self._at.get(text, number) == number:
            if self._at.get(self._texts[number]) == number:
                del self._at[self._texts[number]]
            self._at[text] = number
            self._texts[number], self._scores[number], self._types[number] = text, score, kind

    def declare(self, entry: Added) -> None:
        """Take up an added token; one that is there stays as it is, but for what its type lacks."""
        number = entry.number
        if number < self.size and self._texts[number] in (entry.text, entry.spelled):
            kind = self._types[number]
            if kind in SILENT or (kind is TokenType.USER_DEFINED and not entry.special):
                return
        self.put(number, entry.spelled, entry.kind)

    def append(self, text: str) -> None:
        """Make `text` a control token behind all others."""
        self.put(self._next, text, TokenType.CONTROL)

    def call_special(self, text: str) -> bool:
        """Make the token `text` a control token; False where there is none."""
        number = self._at.get(text)
        if number is not None and self._types[number] in PLAIN:
            self._types[number] = TokenType.CONTROL
        return number is not None or text in self.outside.values()

    def show(self, text: str) -> None:
        """Make the token `text`, if there is one, part of every answer."""
        if text in self._at:
            self._types[self._at[text]] = TokenType.USER_DEFINED

    def fields(self, model: str, pre: str | None) -> list[Field]:
        """Metadata in the converter's order; scores but for those that merge bytes."""
        scores = array("tokenizer.ggml.scores", ValueType.FLOAT32, self._scores)
        return [
            string("tokenizer.ggml.model", model),
            *([string("tokenizer.ggml.pre", pre)] if pre is not None else ()),
            array("tokenizer.ggml.tokens", ValueType.STRING, self._texts),
            *(() if model == "gpt2" else [scores]),
            array("tokenizer.ggml.token_type", ValueType.INT32, map(int, self._types)),
        ]
