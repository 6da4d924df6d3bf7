"""Tokenizers from GGUF metadata against llama.cpp's fixtures, sentencepiece and tokenizers."""

from functools import cache
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from support.checkpoints import DATA, LLAMA3, SENTENCEPIECE
from support.llama_cpp_library import decoded
from support.vocabularies import PIECES, cleaned, letters, merges, texts
from support.zoo_build import build

from gpukit.conversion.run import run_plan
from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, ValueType, array, boolean, string, u32
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer, vocabulary_fields
from gpukit.tokenizer.pretokenizers import PRE_TOKENIZERS

SHARED = LLAMA3.parent.parent / "vocab"
LLAMA2 = SHARED / "llama2-tokenizer.model"
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
        assert tokenizer.decode(ids) == (cleaned(text) if name == "llama-bpe" else text)


def from_folder(folder: Path, size: int) -> Tokenizer:
    fields = vocabulary_fields(folder, {"vocab_size": size})
    return Tokenizer.from_fields({field.key: field for field in fields})


@pytest.fixture(scope="module")
def shakespeare() -> Tokenizer:
    return from_folder(SENTENCEPIECE, 2048)


# Any characters, and pieces that vocabularies and expressions treat in a way of their own.
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PIECES)), max_size=12).map("".join)


@cache
def sentencepiece_pair(model: Path) -> tuple[Tokenizer, Any]:
    """Our tokenizer by way of metadata, and the library's from the same file."""
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(str(model))
    size = library.vocab_size()
    with TemporaryDirectory() as name:
        copyfile(model, Path(name) / "tokenizer.model")
        return from_folder(Path(name), size), library


@pytest.mark.parametrize("model", [SENTENCEPIECE / "tokenizer.model", LLAMA2])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_random_text_equals_sentencepiece(model: Path, text: str) -> None:
    if not model.exists():
        pytest.skip(f"{model.name} is not beside the repository")
    ours, library = sentencepiece_pair(model)
    ids = ours.encode(text, add_special=False)
    assert ids == library.EncodeAsIds(text)
    # Sentencepiece has one character for this and for a space.
    assert ours.decode(ids) == text.replace("\u2581", " ")


CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Expressions as models' own tokenizer.json have them.
EXPRESSIONS = {
    "llama-bpe": CASELESS + r"|\p{N}{1,3}" + REST,
    "qwen2": CASELESS + r"|\p{N}" + REST,
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen35": CASELESS.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+")
    + r"|\p{N}" + REST.replace(r"\p{L}\p{N}]+", r"\p{L}\p{M}\p{N}]+"),
}  # fmt: skip


@cache
def tokenizers_pair(pre: str) -> tuple[Tokenizer, Any]:
    """Our tokenizer by way of metadata, and the library's from the same tokenizer.json."""
    from tokenizers import Regex, Tokenizer as Library, models, pre_tokenizers

    tokens = list(dict.fromkeys([*letters(), *(a + b for a, b in merges())]))
    library = Library(
        models.BPE(
            vocab={text: number for number, text in enumerate(tokens)},
            merges=list(merges()),
            ignore_merges=PRE_TOKENIZERS[pre].ignore_merges,
        )
    )
    library.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(EXPRESSIONS[pre]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    with TemporaryDirectory() as name:
        library.save(f"{name}/tokenizer.json")
        fields = vocabulary_fields(Path(name), {"vocab_size": len(tokens)}, pre=pre)
    return Tokenizer.from_fields({field.key: field for field in fields}), library


@pytest.mark.parametrize("pre", EXPRESSIONS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_random_text_equals_tokenizers(pre: str, text: str) -> None:
    ours, library = tokenizers_pair(pre)
    ids = ours.encode(text, add_special=False)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == (text if pre.startswith("qwen") else cleaned(text))


@pytest.mark.thorough
@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_random_text_equals_llama3(text: str) -> None:
    if not LLAMA3.is_dir():
        pytest.skip("llama3-tokenizer is not beside the repository")
    ours, library = llama3()
    ids = ours.encode(text, add_special=False)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == cleaned(text)


@cache
def llama3() -> tuple[Tokenizer, Any]:
    from tokenizers import Tokenizer as Library

    return from_folder(LLAMA3, 128256), Library.from_file(str(LLAMA3 / "tokenizer.json"))


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


# Texts and what llama.cpp's clean-up leaves of them.
CLEANED = {
    " ?": "?", "a  , b .c!": "a , b.c!", "say ' hi ' ' now": "say'hi'' now", "\n?": "\n?",
    "it 's I 'm we 're I 've": "it's I'm we're I've", "don 't I 'd we 'll": "don 't I 'd we 'll",
    " '": " '", "' s": "' s", "a ' ": "a'", " . 's": ".'s", "": "", "naïve !": "naïve!",
}  # fmt: skip


@pytest.mark.parametrize("text", CLEANED)
def test_a_whole_text_is_cleaned(text: str) -> None:
    ours, _ = tokenizers_pair("gpt-2")
    ids = ours.encode(text, add_special=False)
    assert ours.decode(ids) == CLEANED[text] == cleaned(text)
    assert tokenizers_pair("qwen2")[0].decode(ids) == text
    stream = ours.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == text


@pytest.mark.peer
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "falcon"])
def test_a_whole_text_is_that_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with open_source(build("qwen2-bpe", tmp_path), pre) as source:
        run_plan(source, plan_quantize(source, "F32"), path)
    with GGUFFile(path) as file:
        ours = Tokenizer.from_fields(file.fields)
    said = [ours.encode(text, add_special=False) for text in [*CLEANED, *texts(40, "whole")]]
    theirs = [text.decode("utf-8", "replace") for text in decoded(path, said)]
    assert [ours.decode(ids) for ids in said] == theirs


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
        ({"tokens": array("", ValueType.STRING, list("abca"))}, "holds 'a' 2 times"),
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
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "continuing_subword_prefix": "##"}}',
            "continuing_subword_prefix '##'; a GGUF cannot say that",
        ),
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
