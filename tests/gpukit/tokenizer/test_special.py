"""Tokenizer files that are not built as they must be; sound ones: models/test_forms.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.forms import build

from gpukit.errors import TokenizerError
from gpukit.tokenizer import vocabulary_fields
from gpukit.tokenizer.special import special_fields


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer": {"added_tokens": [3]}, "tokenizer_config": {"bos_token": "<s>"}},
        {"tokenizer": {"post_processor": 7}},
        {"tokenizer": {"post_processor": {"type": "TemplateProcessing", "single": [1, 2]}}},
        {"tokenizer": {"post_processor": {"processors": [None]}}},
        {"tokenizer": {"normalizer": [1]}},
        {"tokenizer_config": {"chat_template": [1]}},
        {"tokenizer_config": {"chat_template": [{"name": "a", "template": 3}]}},
        {"tokenizer_config": {"chat_template": [{"name": "a", "template": "\ud800"}]}},
        {"config": {"bos_token_id": -1}},
        {"config": {"text_config": 3}},
    ],
)
def test_odd_files(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="fetch them again") as caught:
        special_fields(write(tmp_path, **files))
    assert "\n" not in str(caught.value)


def test_ids_outside_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, config={"bos_token_id": 10, "eos_token_id": [1, 2], "pad_token_id": 9})
    found = {field.key: field.value for field in special_fields(tmp_path, size=10)}
    assert found == {"tokenizer.ggml.padding_token_id": 9}


def test_named_templates_keep_their_order(tmp_path: Path) -> None:
    named = [{"name": name, "template": f"{{{{ '{name}' }}}}"} for name in ("z", "a b", "m")]
    write(tmp_path, tokenizer_config={"chat_template": named})
    found = {field.key: field.value for field in special_fields(tmp_path)}
    assert found["tokenizer.chat_templates"] == ["z", "a_b", "m"]
    assert "tokenizer.chat_template" not in found


@pytest.mark.parametrize(
    ("merges", "wanted"),
    [(["a b", "c d"], ["a b", "c d"]), ([["a", "b c"], ["d", "e"]], ["a bĠc", "d e"])],
)
def test_merges_in_both_spellings(merges: Any, wanted: list[str], tmp_path: Path) -> None:
    write(tmp_path, tokenizer={"model": {"merges": merges}})
    assert special_fields(tmp_path, merges=True)[0].value == wanted
    assert special_fields(tmp_path) == []


def test_merges_of_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n\n# #\none two three\nc d\n")
    assert special_fields(tmp_path, merges=True)[0].value == ["a b", "# #", "c d"]


def test_a_list_for_a_map_of_added_tokens(tmp_path: Path) -> None:
    folder = build("least", tmp_path)
    write(folder, tokenizer_config={"added_tokens_decoder": [1]})
    with pytest.raises(TokenizerError, match="added_tokens_decoder is no object"):
        vocabulary_fields(folder, {"vocab_size": 2048})
