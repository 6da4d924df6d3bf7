"""Vocabularies of GGUFs that the libraries behind the tokenizer do not take."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.checkpoints import SENTENCEPIECE
from support.llama_cpp_library import tokenized
from support.tokenizer_folders import byte_level, edited, read
from support.vocabularies import letters, texts
from support.zoo_build import build

from gpukit.conversion.run import run_plan
from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, ValueType, array, string
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer, vocabulary_fields


def bpe(
    tokens: Sequence[str], merges: Sequence[str] = (), pre: str = "gpt-2", *more: Field
) -> Tokenizer:
    """A byte-level BPE of a GGUF; the first token begins texts, the rest is what is said."""
    fields = [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", pre),
        array("tokenizer.ggml.tokens", ValueType.STRING, ["<s>", *tokens]),
        array("tokenizer.ggml.merges", ValueType.STRING, merges),
        *more,
    ]
    return Tokenizer.from_fields({field.key: field for field in fields})


@pytest.mark.parametrize(
    ("merge", "what"),
    [("ab c", "abc"), ("a bcd", "bcd"), ("abab abab", "abab"), ("ab ab", "abab"), ("中 a", "中")],
)
@pytest.mark.parametrize("pre", ["gpt-2", "gemma4"])
def test_a_merge_that_makes_no_token(
    merge: str, what: str, pre: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TokenizerError, match=rf"merges: merge '{merge}': '{what}' is no token"):
        bpe(["a", "b", "c", "ab"], ["a b", merge], pre)
    assert capfd.readouterr().err == ""


def test_a_merge_of_a_folder_that_makes_no_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = byte_level(tmp_path)
    longest = max(tokens, key=len)
    pair = [longest, longest]
    edited(tmp_path / "tokenizer.json", lambda data: data["model"]["merges"].append(pair))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: merge .* is no token"):
        read(tmp_path, len(tokens), pre="gpt-2")
    assert capfd.readouterr().err == ""


def test_bytes_without_a_token_keep_others_apart() -> None:
    ours = bpe(["a", "b", "ab", "Ã"], ["a b"])
    assert ours.encode("ab", add_special=False) == [3]
    # No token for the middle one, which is no reason to merge what stands around it.
    assert ours.encode("acb", add_special=False) == [1, 2]
    assert ours.encode("aéb", add_special=False) == [1, 4, 2]
    assert ours.encode("ccc", add_special=False) == []


@pytest.mark.peer
def test_texts_with_bytes_that_have_no_token_are_those_of_llama_cpp(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with open_source(build("qwen2-bpe", tmp_path), "gpt-2") as source:
        found = {field.key: field for field in source.fields}
        tokens, merges = (found[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
        gone = [text for text in letters() if not any(text in merge for merge in merges.value)]
        assert len(gone) > 100
        kept = [f"[{n}]" if text in gone else text for n, text in enumerate(tokens.value)]
        found[tokens.key] = array(tokens.key, ValueType.STRING, kept)
        source.fields = tuple(found.values())
        run_plan(source, plan_quantize(source, "F32"), path)
    ours = Tokenizer.from_fields(found)
    said = texts(60, "bytes without a token")
    wanted = tokenized(path, [text.encode() for text in said])
    assert [ours.encode(text, add_special=False) for text in said] == wanted
    # As if those bytes were not there, neighbours would merge.
    assert any(
        ours.encode(_without(text, gone), add_special=False) != ids
        for text, ids in zip(said, wanted, strict=True)
    )


def _without(text: str, gone: Sequence[str]) -> str:
    bytes_gone = {letters().index(letter) for letter in gone}
    return bytes(b for b in text.encode() if b not in bytes_gone).decode("utf-8", "ignore")


def test_a_whole_word_without_a_token_is_nothing() -> None:
    # A pre-tokenizer that looks for words does not find those letters that nobody has either.
    assert bpe(["a", "b"], [], "llama-bpe").encode("c", add_special=False) == []


def test_bytes_without_a_token_of_a_vocabulary_of_characters() -> None:
    ours = bpe(["a", "b", "ab", "<0xC3>"], ["a b"], "gemma4")
    assert ours.encode("ab", add_special=False) == [3]
    assert ours.encode("acb", add_special=False) == [1, 2]
    assert ours.encode("aéb", add_special=False) == [1, 4, 2]


BROKEN = b"a\xff\xe2b".decode("utf-8", "surrogateescape")


def test_tokens_and_merges_that_are_no_utf_8() -> None:
    ours = bpe([*letters(), BROKEN, "\udc80", "\udcffa"], ["\udcff a"])
    assert ours.encode("ab", add_special=False) == [1 + ord("a"), 1 + ord("b")]
    assert ours.decode([257]) == "a\ufffd\ufffdb"


def test_a_text_that_is_no_utf_8() -> None:
    # A byte that is none becomes U+FFFD, one each.
    ours = bpe(letters())
    wanted = [1 + byte for byte in "a\ufffd\ufffdb".encode()]
    assert ours.encode(BROKEN, add_special=False) == wanted
    raw = bpe([f"<0x{byte:02X}>" for byte in range(256)], [], "gemma4")
    assert raw.encode(BROKEN, add_special=False) == wanted


def test_what_is_no_utf_8_in_a_sentencepiece_vocabulary() -> None:
    fields = {f.key: f for f in vocabulary_fields(SENTENCEPIECE, {"vocab_size": 2048})}
    plain = Tokenizer.from_fields(fields)
    key = "tokenizer.ggml.tokens"
    tokens = list(fields[key].value)
    tokens[2000] = BROKEN
    ours = Tokenizer.from_fields({**fields, key: array(key, ValueType.STRING, tokens)})
    for text in ("To be 2000", "or not to be"):
        assert ours.encode(text) == plain.encode(text)
    assert ours.decode([2000]) == "a\ufffd\ufffdb"
    # Bytes are what they are.
    ids = plain.encode(BROKEN, add_special=False)
    assert ids[1:-1] == [3 + 0xFF, 3 + 0xE2]
    assert plain.decode(ids) == "a\ufffd\ufffdb"
