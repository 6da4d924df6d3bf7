"""Texts that tell pre-tokenizers apart, and small vocabularies in which every cut shows in the ids.

Also Llama 2's vocabulary with types and scores that no trainer would give it.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpukit.formats.gguf_fields import Field, ValueType, array, boolean, string, u32
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.tokenizer.types import TokenType

LLAMA2 = Path(__file__).resolve().parents[1] / "data" / "vocab" / "ggml-vocab-llama-spm.gguf"

# Letters with and without case, marks, numbers, punctuation, symbols and spaces of many scripts.
PIECES = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "'s", "'RE", "'Ll", " '", "'", "a", "bc", "The",
    "hELLO", "camelCase", "é", "É", "ß", "я", "Я", "ǅ", "ᾳ", "中", "文字", "㐀", "𠀀", "々", "〇",
    "かな", "カナ", "ー", "ﾊ", "한글", "ㄱ", "ก็", "न्", "e\u0301", "\u0301", "1", "23", "456",
    "7890", "1234567", "٣", "Ⅷ", "½", "²", "０", ".", "...", "!?", "$", "+", "`", "|", "~", "_",
    "-", "/", "\\", "#", "(", ")", "[", "]", "{", "—", "…", "，", "。", "、", "।", "“", "’", "‐",
    "・", "🙂", "👨‍👩‍👧", "\u00a0", "\u3000", "\u2003", "\u0085", "\u200b", "\u2028", "ﬁ", "Ａ",
    "ａ", "\x00", "\x1c", "\ufeff", "\ue000", "\u0378", "IMGIMGABZ", "<sentinel:1>", "x" * 20,
    " " * 17,
)  # fmt: skip


# What a vocabulary may call special, beside texts that only begin like it.
SPECIAL = (
    "<s>", "</s>", "<|im_end|>", "<|end|>", "<|channel|>", "<PRE>", "<|user|>", "<|", "|>", "</a",
    "<0x0A>", "hello", " World",
)  # fmt: skip


def cleaned(text: str) -> str:
    """`text` as llama.cpp cleans what it decodes, step by step as its C++ does."""
    out = ""
    for at, character in enumerate(text):
        if character in "?!.," and text[at - 1 : at] == " ":
            out = out[:-1]
        out += character
    characters, out, at = list(out), "", 0
    while at < len(characters):
        character = characters[at]
        if 0 < at < len(characters) - 1 and characters[at - 1 : at + 2] == [" ", "'", " "]:
            out = out[:-1]
            at += 1
            characters[at] = "\0"
        out += character
        at += 1
    text, out = out, ""
    for at, character in enumerate(text):
        ending = text[at + 1 : at + 3]
        if (
            character == "'"
            and text[at - 1 : at] == " "
            and (ending[:1] in ("s", "m") or ending in ("re", "ve"))
        ):
            out = out[:-1]
        out += character
    return out


def texts(count: int, seed: str) -> list[str]:
    """`count` random texts, the same everywhere."""
    chooser = random.Random(seed)
    pieces = [*PIECES, *SPECIAL]
    return ["".join(chooser.choices(pieces, k=chooser.randint(1, 14))) for _ in range(count)]


@cache
def letters() -> list[str]:
    """GPT-2's letter for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [names[byte] for byte in range(256)]


def _shuffled(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(set(pairs), key=lambda pair: hashlib.sha256(repr(pair).encode()).digest())


@cache
def merges() -> tuple[tuple[str, str], ...]:
    """Merges for all neighbours in some texts, and again for all neighbours after them.

    Nothing is cut before merging, so a cut anywhere changes how the bytes around it are paired.
    """
    words = [[letters()[byte] for byte in text.encode()] for text in texts(400, "merges")]
    found: list[tuple[str, str]] = []
    for _ in range(2):
        step = _shuffled(pair for word in words for pair in pairwise(word))
        found += step
        words = [_merged(word, {pair: rank for rank, pair in enumerate(step)}) for word in words]
    return tuple(found)


def _merged(word: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """`word` after all merges, the lowest rank first."""
    while possible := [(ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks]:
        i = min(possible)[1]
        word = [*word[:i], word[i] + word[i + 1], *word[i + 2 :]]
    return word


def byte_level(pre: str) -> list[Field]:
    """The metadata of a vocabulary without tensors whose pre-tokenizer is `pre`."""
    raw = pre in ("gemma4", "granite-embed-multi-311m", "sarvam-moe")
    # No merge makes the last ones: they need a pre-tokenizer that looks for whole tokens first.
    tokens = [*letters(), *(a + b for a, b in merges()), "hELLO", "camelCase", "The", "Ġhello"]
    tokens = list(dict.fromkeys(tokens))
    types = [int(TokenType.NORMAL)] * len(tokens)
    if raw:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [int(TokenType.BYTE)] * 256
    return [
        string("general.architecture", "llama"),
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", pre),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.token_type", ValueType.INT32, types),
        array("tokenizer.ggml.merges", ValueType.STRING, [" ".join(pair) for pair in merges()]),
        u32("tokenizer.ggml.bos_token_id", 0),
    ]


def altered(kind: str) -> list[Field]:
    """Llama 2's vocabulary with another `kind` of trouble; the whole of ALTERED makes sense."""
    chooser = random.Random(kind)
    with GGUFFile(LLAMA2) as file:
        found = dict(file.fields)
    tokens, scores, types = (
        list(found[f"tokenizer.ggml.{key}"].value) for key in ("tokens", "scores", "token_type")
    )
    if kind == "equal scores":
        scores = [-1000.0] * len(tokens)
    elif kind == "types":
        for number in range(300, len(tokens)):
            types[number] = chooser.choices((1, 3, 4, 5), (90, 3, 2, 5))[0]
    elif kind == "bytes as text":
        types = [1 if number == 6 else number for number in types]
    elif kind == "phi-3":
        for number, text in enumerate(("<|user|>", "<|end|>", "<|endoftext|>")):
            tokens[31000 + number], types[31000 + number] = text, 3
    elif kind == "specials as text":
        for number, text in enumerate(("<|im_end|>", "<|end|>", "<PRE>", "<|channel|>", "</a")):
            tokens[31000 + number], scores[31000 + number] = text, 0.0
    lists = [
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, scores),
        array("tokenizer.ggml.token_type", ValueType.INT32, types),
    ]
    found |= {field.key: field for field in lists}
    if kind == "no prefix":
        found["tokenizer.ggml.add_space_prefix"] = boolean("tokenizer.ggml.add_space_prefix", False)
    if kind == "phi-3":
        found["general.name"] = string("general.name", "A Phi-3 of mine")
    return list(found.values())


ALTERED = ("equal scores", "types", "bytes as text", "specials as text", "no prefix", "phi-3")


def whole(part: Mapping[str, Any]) -> list[Field]:
    """The fields of a vocabulary of which a file in data/vocab holds what its texts need.

    Other tokens have texts that occur nowhere, so that every id is what it is in the whole one.
    """
    texts = [f"[other {number}]" for number in range(part["size"])]
    types, scores = [int(TokenType.NORMAL)] * len(texts), [-1e9] * len(texts)
    for number, (text, kind, score) in part["tokens"].items():
        texts[int(number)], types[int(number)], scores[int(number)] = text, kind, score
    fields = [
        Field(f"tokenizer.ggml.{key}", ValueType[kind], value)
        for key, (kind, value) in part["fields"].items()
    ]
    return [
        string("general.name", part["name"]),
        *fields,
        array("tokenizer.ggml.tokens", ValueType.STRING, texts),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, scores),
        array("tokenizer.ggml.token_type", ValueType.INT32, types),
        array("tokenizer.ggml.merges", ValueType.STRING, part["merges"]),
    ]
