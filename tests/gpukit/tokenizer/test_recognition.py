"""A tokenizer.json that nobody knows, and the pre-tokenizer that the user names for it."""

import json
import re
from pathlib import Path

import pytest
from support.forms import build
from support.vocabularies import letters
from tokenizers import Tokenizer, models, pre_tokenizers

from gpukit.errors import ArgumentError, TokenizerError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.generation.loading import load_model
from gpukit.models.importer import plan_import
from gpukit.recipes.inspect import describe
from gpukit.tokenizer import vocabulary_fields
from gpukit.tokenizer.pretokenizers import PRE_TOKENIZERS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a byte-level BPE that has no merges."""
    folder = build("least", tmp_path)
    (folder / "tokenizer.model").unlink()
    vocab = {text: number for number, text in enumerate(letters())}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.save(str(folder / "tokenizer.json"))
    return folder


def test_an_unknown_one_is_an_error_that_names_the_way_out(folder: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"hash [0-9a-f]{64}\).*--pre; docs/importing\.md lists all \d"
    ) as caught:
        vocabulary_fields(folder, {"vocab_size": 256})
    assert "\n" not in str(caught.value)
    assert str(folder / "tokenizer.json") in str(caught.value)


def test_the_name_that_is_given_counts(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        plan = plan_import(checkpoint, pre="deepseek-v3")
    found = {field.key: field.value for field in plan.fields}
    assert found["tokenizer.ggml.pre"] == "deepseek-v3"
    assert found["tokenizer.ggml.model"] == "gpt2"


def test_the_name_counts_wherever_a_folder_is_read(folder: Path) -> None:
    assert "--pre" in (describe(folder).problem or "")
    found = describe(folder, pre="gpt-2").tokenizer
    assert found is not None
    assert found.pre == "gpt-2"
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["ab"] = 256
    data["model"]["merges"] = [["a", "b"]]
    path.write_text(json.dumps(data))
    assert 256 in load_model(folder, "cpu", pre="gpt-2").tokenizer.encode("ab")
    for pre, told in (("nobody", "unknown pre-tokenizer"), ("gpt-2", "--pre is for model folders")):
        path = folder if pre == "nobody" else folder / "model.safetensors"
        with pytest.raises(ArgumentError, match=told):
            describe(path, pre=pre)


def test_an_unknown_name(folder: Path) -> None:
    with pytest.raises(
        ArgumentError,
        match=r"^--pre lama3: unknown pre-tokenizer; docs/importing\.md lists all "
        rf"{len(PRE_TOKENIZERS)}: did you mean 'llama3'\?$",
    ):
        vocabulary_fields(folder, {"vocab_size": 256}, pre="lama3")
    named = folder.rename(folder.with_name("Qwen3.5"))
    with pytest.raises(TokenizerError, match=r"name it with --pre; near 'Qwen3.5': qwen35; docs"):
        vocabulary_fields(named, {"vocab_size": 256})


def test_the_docs_list_every_name() -> None:
    text = (ROOT / "docs" / "importing.md").read_text().partition("## Pre-tokenizers\n")[2]
    assert re.findall(r"`([^` ]+)`[,.]", text) == sorted(PRE_TOKENIZERS)


def test_a_name_for_a_vocabulary_without_one(tmp_path: Path) -> None:
    with (
        Checkpoint(build("least", tmp_path)) as checkpoint,
        pytest.raises(ArgumentError, match=r"--pre qwen2: this vocabulary is no byte-level BPE"),
    ):
        plan_import(checkpoint, pre="qwen2")


def test_holes_and_added_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"] = [
        {"id": 256, "content": "<|a|>", "special": True},
        {"id": 258, "content": "bb", "special": False},
    ]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] = [entry | plain for entry in data["added_tokens"]]
    path.write_text(json.dumps(data))
    fields = vocabulary_fields(folder, {"vocab_size": 260}, pre="gpt-2")
    found = {field.key: field.value for field in fields}
    assert found["tokenizer.ggml.tokens"][256:] == ["<|a|>", "[PAD257]", "bb", "[PAD259]"]
    assert found["tokenizer.ggml.token_type"][256:] == [3, 5, 4, 5]
