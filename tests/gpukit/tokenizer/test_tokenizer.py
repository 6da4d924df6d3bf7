"""Tokenizers from GGUF metadata against llama.cpp's fixtures, sentencepiece and tokenizers."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import DATA, LLAMA3, SENTENCEPIECE
from hypothesis import given, settings
from hypothesis import strategies as st

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, ValueType, array, boolean, string, u32
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.tokenizer import Tokenizer, vocabulary_fields

SHARED = LLAMA3.parent.parent / "vocab"
SEPARATOR = "\n__ggml_vocab_test__\n"


def fixture(name: str) -> Path:
    for folder in (DATA / "vocab", SHARED):
        if (path := folder / f"ggml-vocab-{name}.gguf").exists():
            return path
    pytest.skip(f"ggml-vocab-{name}.gguf is not beside the repository")


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "phi-3"])
def test_fixtures_of_llama_cpp(name: str) -> None:
    path = fixture(name)
    with GGUFFile(path) as file:
        tokenizer = Tokenizer.from_fields(file.fields)
    texts = path.with_name(path.name + ".inp").read_text().split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == [int(word) for word in line.split()], repr(text)
        assert tokenizer.decode(ids) == text


def from_folder(folder: Path, size: int) -> Tokenizer:
    fields = vocabulary_fields(folder, {"vocab_size": size})
    return Tokenizer.from_fields({field.key: field for field in fields})


@pytest.fixture(scope="module")
def shakespeare() -> Tokenizer:
    return from_folder(SENTENCEPIECE, 2048)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_random_text_equals_sentencepiece(shakespeare: Tokenizer, text: str) -> None:
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(str(SENTENCEPIECE / "tokenizer.model"))
    normal = text.replace("\u2581", " ").replace("\0", "")
    wanted = library.EncodeAsIds(normal) if normal.isascii() else None
    ids = shakespeare.encode(normal, add_special=False)
    if wanted is not None and "  " not in normal and normal == normal.strip() and normal:
        assert ids == wanted
    assert shakespeare.decode(ids) == normal


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(max_size=60))
def test_random_text_equals_tokenizers(text: str) -> None:
    if not LLAMA3.is_dir():
        pytest.skip("llama3-tokenizer is not beside the repository")
    ours, library = llama3()
    ids = ours.encode(text, add_special=False)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


_LLAMA3: list[Any] = []


def llama3() -> tuple[Any, ...]:
    if not _LLAMA3:
        from tokenizers import Tokenizer as Library

        ours = from_folder(LLAMA3, 128256)
        _LLAMA3.extend([ours, Library.from_file(str(LLAMA3 / "tokenizer.json"))])
    return tuple(_LLAMA3)


def test_special_tokens_of_llama3() -> None:
    if not LLAMA3.is_dir():
        pytest.skip("llama3-tokenizer is not beside the repository")
    ours, _ = llama3()
    text = "<|begin_of_text|>hi<|eot_id|>"
    assert ours.encode(text, add_special=False, parse_special=True)[0] == 128000
    assert 128009 in ours.encode(text, add_special=False, parse_special=True)
    assert 128009 not in ours.encode(text, add_special=False)
    assert 128009 in ours.eog_ids
    assert ours.encode("a")[0] == 128000


def test_streamed_text_never_breaks_a_character(shakespeare: Tokenizer) -> None:
    text = "naïve 🦙 ✅ 天"
    stream = shakespeare.stream()
    pieces = [stream.push(i) for i in shakespeare.encode(text)] + [stream.flush()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_cut_character_becomes_a_replacement(shakespeare: Tokenizer) -> None:
    ids = shakespeare.encode("🦙", add_special=False)[:-1]
    assert shakespeare.decode(ids).endswith("\ufffd")


def tiny(**changes: Field | None) -> dict[str, Field]:
    tokens = ["<unk>", "<s>", "</s>", "▁a", "b", "<0x0A>"]
    fields = [
        string("tokenizer.ggml.model", "llama"),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * 6),
        array("tokenizer.ggml.token_type", ValueType.INT32, [2, 3, 3, 1, 1, 6]),
    ]
    found: dict[str, Field | None] = {field.key: field for field in fields}
    found |= {f"tokenizer.ggml.{key}": field for key, field in changes.items()}
    return {key: field for key, field in found.items() if field is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": string("", "unigram")}, "unigram"),
        ({"model": None}, "None"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokens": array("", ValueType.INT32, [1, 2])}, "no array of STRING"),
        ({"scores": array("", ValueType.FLOAT32, [0.0])}, "1 scores for 6 tokens"),
        ({"token_type": array("", ValueType.INT32, [1])}, "1 token types for 6 tokens"),
        ({"bos_token_id": u32("", 99)}, "bos_token_id is 99, the vocabulary has 6"),
        ({"model": string("", "gpt2")}, "no tokenizer.ggml.merges"),
        (
            {"model": string("", "gpt2"), "merges": array("", ValueType.STRING, ["ab"])},
            "merge 'ab' is no pair",
        ),
        (
            {
                "model": string("", "gpt2"),
                "merges": array("", ValueType.STRING, []),
                "pre": string("", "nobody"),
            },
            "unknown pre-tokenizer 'nobody'",
        ),
    ],
)
def test_vocabularies_that_contradict_themselves(
    changes: dict[str, Field | None], words: str
) -> None:
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.from_fields(tiny(**changes))


def test_flags_of_the_metadata_count() -> None:
    fields = tiny(add_bos_token=boolean("", False), add_eos_token=boolean("", True))
    tokenizer = Tokenizer.from_fields(fields)
    assert tokenizer.encode("a") == [3, 2]
    del fields["tokenizer.ggml.add_bos_token"]
    assert Tokenizer.from_fields(fields).encode("a") == [1, 3, 2]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.model", "nonsense", "no sentencepiece model"),
        ("tokenizer.json", "{", "no JSON"),
        ("tokenizer.json", "[]", "no JSON object"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "'Unigram'; BPE can be imported"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}}}', "no tokenizer"),
        ("other.txt", "", "no tokenizer.model and no tokenizer.json"),
    ],
)
def test_broken_folders(file: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(TokenizerError, match=words):
        vocabulary_fields(tmp_path, {"vocab_size": 10})


def test_a_vocabulary_larger_than_the_embedding() -> None:
    with pytest.raises(TokenizerError, match=r"2048 tokens, config\.json has a vocab_size of 2000"):
        vocabulary_fields(SENTENCEPIECE, {"vocab_size": 2000})
