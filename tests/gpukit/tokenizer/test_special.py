"""Tokenizer files that are not built as they must be; sound ones: models/test_forms.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.forms import build
from support.tokenizer_folders import copied

from gpukit.errors import TokenizerError
from gpukit.events import Event, Warned
from gpukit.tokenizer import vocabulary_fields
from gpukit.tokenizer.special import special_fields
from gpukit.tokenizer.templates import chat_templates


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
        {"config": {"text_config": 3}},
    ],
)
def test_odd_files(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="fetch them again") as caught:
        special_fields(write(tmp_path, **files))
    assert "\n" not in str(caught.value)


def ids(folder: Path, size: int | None = 10) -> tuple[dict[str, Any], list[str]]:
    """The ids that are found, by kind, and what is told."""
    told: list[Event] = []
    fields = special_fields(folder, size=size, report=told.append)
    named = {f.key.removeprefix("tokenizer.ggml."): f.value for f in fields}
    return (
        {key.removesuffix("_token_id"): value for key, value in named.items()},
        [event.text for event in told if isinstance(event, Warned)],
    )


@pytest.mark.parametrize(
    ("config", "wanted", "odd"),
    [
        ({"bos_token_id": 10, "pad_token_id": 9}, {"padding": 9}, "bos_token_id '10'"),
        ({"pad_token_id": -1, "eos_token_id": 2}, {"eos": 2}, "pad_token_id '-1'"),
        ({"bos_token_id": "1"}, {}, "bos_token_id '1'"),
        ({"bos_token_id": 1.5, "eos_token_id": 1}, {"eos": 1}, "bos_token_id '1.5'"),
        ({"bos_token_id": True}, {}, "bos_token_id 'True'"),
        ({"eos_token_id": {"a": 1}}, {}, "eos_token_id"),
        ({"bos_token_id": None, "eos_token_id": []}, {}, None),
        ({"eos_token_id": [2, 7]}, {"eos": 2, "eot": 7}, None),
        ({"eos_token_id": [2, 7, 8, 9]}, {"eos": 2, "eot": 7, "eom": 8}, None),
        ({"eos_token_id": [99, 7, None]}, {"eos": 7}, "eos_token_id '99'"),
        ({"bos_token_id": [3, 4]}, {"bos": 3}, None),
        ({"text_config": {"bos_token_id": 4}}, {"bos": 4}, None),
    ],
)
def test_ids_of_a_config(
    config: dict[str, Any], wanted: dict[str, int], odd: str | None, tmp_path: Path
) -> None:
    found, told = ids(write(tmp_path, config=config))
    assert found == wanted
    assert [line.startswith(f"{tmp_path / 'config.json'}: {odd}") for line in told] == [True] * (
        odd is not None
    )


def test_a_list_does_not_replace_what_the_settings_name(tmp_path: Path) -> None:
    library = {"added_tokens": [{"id": 5, "content": "<end>"}]}
    write(tmp_path, tokenizer=library, tokenizer_config={"eos_token": "<end>"})
    assert ids(write(tmp_path, config={"eos_token_id": [2, 7]})) == ({"eos": 5}, [])


def test_ids_of_a_generation_config(tmp_path: Path) -> None:
    write(tmp_path, config={"bos_token_id": 1}, generation_config={"eos_token_id": [2, 30]})
    found, (line,) = ids(tmp_path)
    assert found == {"bos": 1, "eos": 2}
    assert line == (
        f"{tmp_path / 'generation_config.json'}: eos_token_id '30' is no token; left out"
    )
    (tmp_path / "generation_config.json").write_text("{")
    assert ids(tmp_path) == ({"bos": 1}, [])


JINJA, MORE = "chat_template.jinja", "additional_chat_templates"
NAMED = [{"name": "default", "template": "settings"}, {"name": "tools", "template": "other"}]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({JINJA: "file"}, {"": "file"}),
        ({JINJA: "file", "tokenizer_config.json": {}}, {"": "file"}),
        ({JINJA: "file", "tokenizer_config.json": {"chat_template": None}}, {"": "file"}),
        ({JINJA: "file", "tokenizer_config.json": {"chat_template": "settings"}}, {"": "file"}),
        ({JINJA: "file", "tokenizer_config.json": {"chat_template": NAMED}}, {"": "file"}),
        (
            {JINJA: "file", f"{MORE}/rag.jinja": "r", f"{MORE}/default.jinja": "no"},
            {"": "file", ".rag": "r", "s": ["rag"]},
        ),
        (
            {f"{MORE}/rag.jinja": "r", "tokenizer_config.json": {"chat_template": "settings"}},
            {".rag": "r", "s": ["rag"]},
        ),
        (
            {"tokenizer_config.json": {"chat_template": NAMED}},
            {"": "settings", ".tools": "other", "s": ["tools"]},
        ),
        (
            {"tokenizer_config.json": {"chat_template": "settings"},
             "chat_template.json": {"chat_template": "old"}},
            {"": "settings"},
        ),
        ({"chat_template.json": {"chat_template": "old"}}, {"": "old"}),
        ({"tokenizer_config.json": {"chat_template": {"a": "b"}}}, {".a": "b", "s": ["a"]}),
    ],
)  # fmt: skip
def test_the_first_place_with_a_template_counts(
    files: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    start = "tokenizer.chat_template"
    found = {f.key.removeprefix(start): f.value for f in special_fields(tmp_path)}
    assert found == wanted


@pytest.mark.peer
def test_the_template_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = copied(tmp_path, "tokenizer.json")
    write(folder, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "chat_template": NAMED})
    for name in (None, "rag", "default"):
        if name == "default":
            (folder / JINJA).write_text("file")
        elif name is not None:
            (folder / MORE).mkdir()
            (folder / MORE / f"{name}.jinja").write_text(name)
        library = transformers.AutoTokenizer.from_pretrained(folder)
        theirs = library.chat_template
        theirs = {"default": theirs} if isinstance(theirs, str) else theirs
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert chat_templates(folder, settings) == theirs


@pytest.mark.parametrize(
    ("templates", "said"),
    [
        (7, "its chat_template is 7"),
        ([{"name": "a"}], "one of its chat templates is {'name': 'a'}"),
        ([{"template": "b"}], "one of its chat templates is {'template': 'b'}"),
    ],
)
def test_what_is_no_template_is_told(templates: object, said: str, tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={"chat_template": templates})
    told: list[Event] = []
    assert not any("template" in f.key for f in special_fields(tmp_path, report=told.append))
    assert told == [Warned(f"{tmp_path}: {said}, not a text by a name: it is passed over")]


def test_named_templates_keep_their_order(tmp_path: Path) -> None:
    named = [{"name": name, "template": f"{{{{ '{name}' }}}}"} for name in ("z", "a b", "m")]
    write(tmp_path, tokenizer_config={"chat_template": named})
    told: list[Event] = []
    fields = special_fields(tmp_path, report=told.append)
    found = {field.key: field.value for field in fields}
    assert found["tokenizer.chat_templates"] == ["z", "a_b", "m"]
    assert "tokenizer.chat_template" not in found
    assert told == [
        Warned(
            f"{tmp_path}: of its chat templates (z, a_b, m) none is the default: conversations "
            "have none"
        )
    ]


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
