"""The ids of llama.cpp: its own test vocabularies, every pre-tokenizer, and odd token types."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA
from support.golden_makers.vocabularies import TEXTS, digest
from support.vocabularies import ALTERED, altered, byte_level, cleaned, texts, whole

from gpukit.formats.gguf_fields import Field
from gpukit.tokenizer import Tokenizer
from gpukit.tokenizer.pretokenizers import PRE_TOKENIZERS
from gpukit.tokenizer.recognition import HASHES

GOLDEN: dict[str, dict[str, Any]] = json.loads((DATA / "golden" / "vocabularies.json").read_text())
PARTS = sorted((DATA / "vocab").glob("*.json"))


# Whose decoded texts llama.cpp does not clean.
KEEP_BLANKS = ("command-r", "deepseek-coder", "deepseek-llm", "phi-3", "qwen2", "qwen35")


def tokenizer(fields: list[Field]) -> Tokenizer:
    return Tokenizer.from_fields({field.key: field for field in fields})


def found(fields: list[Field]) -> list[Any]:
    """Digest of the ids of all texts, without and with special tokens, and the ends."""
    ours = tokenizer(fields)
    ids = [
        ours.encode(text, add_special=special, parse_special=special)
        for special in (False, True)
        for text in texts(TEXTS, "ids")
    ]
    return [digest(ids), sorted(ours.eog_ids)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_vocabularies_of_llama_cpp(path: Path) -> None:
    part = json.loads(path.read_text())
    ours = tokenizer(whole(part))
    assert len(part["texts"]) > 40
    for text, ids in zip(part["texts"], part["ids"], strict=True):
        assert ours.encode(text, add_special=False) == ids, repr(text)
        stream = ours.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == text
        assert ours.decode(ids) == (text if path.stem in KEEP_BLANKS else cleaned(text))


def test_every_name_has_its_golden_ids() -> None:
    assert GOLDEN["pre"].keys() == PRE_TOKENIZERS.keys()
    assert GOLDEN["altered"].keys() == set(ALTERED)
    # The texts tell rules apart; bailingmoe's are spelled otherwise than qwen2's and cut the same.
    rules = {(r.splits, r.ignore_merges, r.add_bos, r.raw) for r in PRE_TOKENIZERS.values()}
    assert len({ids for ids, _ in GOLDEN["pre"].values()}) == len(rules) - 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_cut_as_llama_cpp_does(name: str) -> None:
    assert found(byte_level(name)) == GOLDEN["pre"][name]


@pytest.mark.parametrize("kind", ALTERED)
def test_sentencepiece_vocabularies_with_odd_types_and_scores(kind: str) -> None:
    assert found(altered(kind)) == GOLDEN["altered"][kind]


def test_every_name_that_is_recognised_can_be_run() -> None:
    # These two are no BPE.
    assert set(HASHES.values()) - {"bert-bge-large", "jina-v2-en"} <= PRE_TOKENIZERS.keys()
