"""Tokens that are more than text: which are control tokens, which end a generation, and how they
are cut out of a text before the rest of it is tokenised.

llama.cpp corrects the types of tokens by their texts, since many files have them wrong; the same
is done here. Source: llama_vocab::impl::load and tokenizer_st_partition in src/llama-vocab.cpp.
"""

from collections.abc import Iterable, Mapping, Sequence

from gpukit.tokenizer.types import TokenType

# Texts that end a generation wherever a vocabulary has them.
END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
# Texts of tokens for filling in the middle; the first of each kind that a vocabulary has counts.
FILL_TEXTS = {
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
        "<|code_prefix|>", "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
        "<|code_suffix|>", "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
        "<|code_middle|>", "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
# Those of them that end a generation.
FILL_ENDS = ("fim_pad", "fim_rep", "fim_sep")
# Texts that are always part of the answer.
SHOWN_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

# White space of C's isspace, which follows a special token of Phi-3 without a trace.
ASCII_SPACE = " \t\n\v\f\r"
PHI3_NAMES = ("phi-3", "phi3")
PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")


def corrected(
    tokens: Sequence[str], types: Sequence[TokenType], ids: Mapping[str, int | None]
) -> tuple[list[TokenType], frozenset[int]]:
    """The types of `tokens` as llama.cpp corrects them, and the ids that end a generation.

    `ids` are those that the metadata name: eos, eot, eom and the kinds of FILL_TEXTS.
    """
    found = list(types)
    at = {text: number for number, text in enumerate(tokens)}
    ends = {number for kind in ("eos", "eot", "eom") if (number := ids.get(kind)) is not None}
    for kind, texts in FILL_TEXTS.items():
        number = ids.get(kind)
        there = [at[text] for text in texts if text in at]
        if number is None and there:
            number = min(there)
            found[number] = TokenType.CONTROL
        if number is not None and kind in FILL_ENDS:
            ends.add(number)
    for text in END_TEXTS & at.keys():
        ends.add(at[text])
        found[at[text]] = TokenType.CONTROL
    for text in at.keys() & SHOWN_TEXTS:
        found[at[text]] = TokenType.USER_DEFINED
    _keep_going(at, ends, found)
    return found, frozenset(ends)


def _keep_going(at: Mapping[str, int], ends: set[int], types: list[TokenType]) -> None:
    """Texts that end most models' answers and not those of models with certain other tokens."""

    def has(*texts: str) -> bool:
        return any(at.get(text) in ends for text in texts)

    calls = has("<|call|>", "<|calls|>")
    if has("<|end|>") and calls and has("<|return|>", "<|flush|>"):
        ends.remove(at["<|end|>"])
        types[at["<|end|>"]] = TokenType.USER_DEFINED
    if has("</s>") and has("<|tool_response>", "<|plamo:eos|>"):
        ends.remove(at["</s>"])
        types[at["</s>"]] = TokenType.NORMAL


class Specials:
    """The tokens that are looked for in a text before anything else, the longest first."""

    def __init__(self, tokens: Sequence[str], types: Sequence[TokenType], model: str) -> None:
        """`model` is general.name, by which llama.cpp knows Phi-3."""
        hidden = (TokenType.CONTROL, TokenType.UNKNOWN)
        kinds = (*hidden, TokenType.USER_DEFINED)
        cut = [number for number, kind in enumerate(types) if kind in kinds and tokens[number]]
        cut.sort(key=lambda number: -len(tokens[number].encode("utf-8", "surrogateescape")))
        self._all = [(tokens[number], number) for number in cut]
        self._always = [(tokens[n], n) for n in cut if types[n] not in hidden]
        phi3 = any(name in model.lower() for name in PHI3_NAMES)
        self._eats_space = {number for text, number in self._all if phi3 and text not in PHI3_KEEPS}

    def parts(self, text: str, *, control: bool) -> Iterable[str | int]:
        """`text` cut into plain pieces and ids; `control` looks for control tokens, too."""
        parts: list[str | int] = [text] if text else []
        for special, number in self._all if control else self._always:
            if special not in text:
                continue
            before, parts = parts, []
            for part in before:
                if isinstance(part, str) and special in part:
                    parts += self._cut(part, special, number)
                else:
                    parts.append(part)
        return parts

    def _cut(self, text: str, special: str, number: int) -> Iterable[str | int]:
        first, *rest = text.split(special)
        if first:
            yield first
        for piece in rest:
            yield number
            if number in self._eats_space:
                piece = piece.lstrip(ASCII_SPACE)
            if piece:
                yield piece
