"""Which of a folder's files is its vocabulary, and what is made of tokenizer.json alone."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2 as pb2
from support.checkpoints import SENTENCEPIECE
from support.tokenizer_folders import byte_level, copied, edited, read
from support.vocabularies import texts

from gpukit.errors import TokenizerError
from gpukit.tokenizer import (
    Tokenizer,
    gemma2_vocabulary,
    phi3_vocabulary,
    plain_vocabulary,
    vocabulary_fields,
)

LINES = (
    "To be, or not to be: that is the question.", "  But soft,\n what light\t?", "naïve 🦙 天", "",
    "HAMLET:\nO, pardon me, thou bleeding piece of earth, 1234567",
    *texts(60, "folder"),
)  # fmt: skip


@pytest.mark.parametrize(
    "vocabulary", [vocabulary_fields, plain_vocabulary, gemma2_vocabulary, phi3_vocabulary]
)
def test_scores_follow_the_order_of_merges(vocabulary: Any, tmp_path: Path) -> None:
    found, told = read(copied(tmp_path, "tokenizer.json"), 2048, vocabulary)
    whole, _ = read(copied(tmp_path, "tokenizer.model"), 2048, vocabulary)
    assert not told
    key = "tokenizer.ggml.tokens"
    assert found[key] == whole[key]
    ours, theirs = (Tokenizer.from_fields(fields) for fields in (found, whole))
    for line in LINES:
        assert ours.encode(line) == theirs.encode(line), line
    library = SentencePieceProcessor(str(SENTENCEPIECE / "tokenizer.model"))
    if vocabulary is vocabulary_fields:
        for line in LINES:
            assert ours.encode(line, add_special=False) == library.EncodeAsIds(line), line


def test_a_score_is_the_rank_of_the_first_merge(tmp_path: Path) -> None:
    found, _ = read(copied(tmp_path, "tokenizer.json"), 2048)
    tokens, scores = (found[f"tokenizer.ggml.{key}"].value for key in ("tokens", "scores"))
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    pieces = ["".join(pair) for pair in data["model"]["merges"]]
    assert scores[tokens.index(pieces[0])] == 0.0
    assert scores[tokens.index(pieces[500])] == -float(pieces.index(pieces[500]))
    # What no merge makes comes after all of them.
    assert scores[tokens.index("e")] == -float(len(set(pieces)))


def test_merges_as_texts_are_read_alike(tmp_path: Path) -> None:
    pairs, _ = read(copied(tmp_path, "tokenizer.json"), 2048)

    def join(data: dict[str, Any]) -> None:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    edited(tmp_path / "tokenizer.json", join)
    assert read(tmp_path, 2048)[0] == pairs


@pytest.mark.parametrize("merge", ["ab", "a b c", ["a"], ["a", 1], 3])
def test_a_merge_that_is_no_pair(merge: Any, tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json")
    edited(tmp_path / "tokenizer.json", lambda data: data["model"]["merges"].append(merge))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: merge .* is no pair"):
        read(tmp_path, 2048)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_rows_without_a_token_are_unused(file: str, tmp_path: Path) -> None:
    found, told = read(copied(tmp_path, file), 2112)
    assert not told
    tokens, scores, types = (
        found[f"tokenizer.ggml.{key}"].value for key in ("tokens", "scores", "token_type")
    )
    assert tokens[2048:] == [f"[PAD{number}]" for number in range(2048, 2112)]
    assert set(types[2048:]) == {5}
    assert set(scores[2048:]) == {-10000.0}


@pytest.mark.parametrize(
    "steps",
    [
        {"normalizer": {"type": "Prepend", "prepend": "▁"}, "pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}},
        {"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": True}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "NFC"}],
            },
            "pre_tokenizer": None,
        },
    ],
)
def test_a_space_in_front_is_what_a_llama_has(steps: dict[str, Any], tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json")
    edited(tmp_path / "tokenizer.json", lambda data: data.update(steps))
    assert "tokenizer.ggml.add_space_prefix" not in read(tmp_path, 2048)[0]


@pytest.mark.parametrize(
    "steps",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}},
        {"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}},
        {"normalizer": {"type": "Replace"}, "pre_tokenizer": {"type": "Split"}},
    ],
)
def test_no_space_in_front(steps: dict[str, Any], tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json")
    edited(tmp_path / "tokenizer.json", lambda data: data.update(steps))
    assert read(tmp_path, 2048)[0]["tokenizer.ggml.add_space_prefix"].value is False
    # What the settings say counts, as for transformers.
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert read(tmp_path, 2048)[0]["tokenizer.ggml.add_space_prefix"].value is True


def test_a_byte_that_is_spelled_as_a_character(tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json")
    whole, _ = read(tmp_path, 2048)

    def spell(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        data["model"]["vocab"] = {"\t" if t == "<0x09>" else t: n for t, n in vocabulary.items()}

    edited(tmp_path / "tokenizer.json", spell)
    assert read(tmp_path, 2048)[0] == whole
    # Beside a tokenizer.model that is no reason to call them different.
    assert not read(copied(tmp_path, "tokenizer.model"), 2048)[1]


STATES: dict[str, dict[str, Any]] = {
    "padded to eights": {
        "padding": {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 8,
            "pad_id": 3, "pad_type_id": 0, "pad_token": "$",
        }
    },
    "padded to 512": {
        "padding": {
            "strategy": {"Fixed": 512}, "direction": "Left", "pad_to_multiple_of": None,
            "pad_id": 3, "pad_type_id": 0, "pad_token": "$",
        }
    },
    "cut": {
        "truncation": {
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_what_was_switched_on_when_a_file_was_saved(state: str, tmp_path: Path) -> None:
    size = len(byte_level(tmp_path))
    plain, _ = read(tmp_path, size, pre="gpt-2")
    assert plain["tokenizer.ggml.tokens"].value[-1] == "<|eot_id|>"
    edited(tmp_path / "tokenizer.json", lambda data: data.update(STATES[state]))
    assert read(tmp_path, size, pre="gpt-2")[0] == plain
    with pytest.raises(TokenizerError, match="unknown pre-tokenizer") as changed:
        read(tmp_path, size)
    byte_level(tmp_path)
    with pytest.raises(TokenizerError, match="unknown pre-tokenizer") as unchanged:
        read(tmp_path, size)
    assert str(changed.value) == str(unchanged.value)


def test_dropout_does_not_make_ids_random(tmp_path: Path) -> None:
    size = len(byte_level(tmp_path))
    with pytest.raises(TokenizerError, match="hash") as plain:
        read(tmp_path, size)
    edited(tmp_path / "tokenizer.json", lambda data: data["model"].update(dropout=0.9))
    with pytest.raises(TokenizerError, match="hash") as dropped:
        read(tmp_path, size)
    assert str(plain.value) == str(dropped.value)


def tiktoken(folder: Path) -> Path:
    """A tokenizer.model of tiktoken in `folder`."""
    lines = (base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(256))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def test_a_byte_level_tokenizer_json_counts(tmp_path: Path) -> None:
    size = len(byte_level(tmp_path))
    alone, _ = read(tmp_path, size, pre="gpt-2")
    for folder in (tiktoken(tmp_path), copied(tmp_path, "tokenizer.model")):
        assert read(folder, size, pre="gpt-2") == (alone, [])


def test_no_sentencepiece_model_beside_a_tokenizer_json(tmp_path: Path) -> None:
    alone, _ = read(copied(tmp_path, "tokenizer.json"), 2048)
    found, (line,) = read(tiktoken(tmp_path), 2048)
    assert found == alone
    assert "tokenizer.model: no sentencepiece model but tiktoken's" in line


def test_a_tiktoken_model_alone_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tiktoken's; copy the model's tokenizer\.json"):
        read(tiktoken(tmp_path), 2048)


def test_a_model_without_pieces(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match="no pieces; fetch it again"):
        read(tmp_path, 2048)


def test_a_piece_that_is_no_utf_8(tmp_path: Path) -> None:
    path = copied(tmp_path, "tokenizer.model") / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace(b"<unk>", b"<\xffnk>", 1))
    with pytest.raises(TokenizerError, match="no sentencepiece model but broken"):
        read(tmp_path, 2048)


def test_a_tokenizer_model_of_another_model(tmp_path: Path) -> None:
    alone, _ = read(copied(tmp_path, "tokenizer.json"), 2048)
    copied(tmp_path, "tokenizer.model")
    model = pb2.ModelProto.FromString((tmp_path / "tokenizer.model").read_bytes())
    model.pieces[2000].piece, model.pieces[2001].piece = (
        model.pieces[2001].piece, model.pieces[2000].piece
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    found, (line,) = read(tmp_path, 2048)
    assert found == alone
    assert "other tokens than in tokenizer.json" in line


@pytest.mark.parametrize("name", [None, "GPT2Tokenizer", "TokenizersBackend", "LlamaTokenizer"])
def test_the_class_of_a_phi_says_nothing(name: str | None, tmp_path: Path) -> None:
    size = len(byte_level(tmp_path))
    alone, _ = read(tmp_path, size, phi3_vocabulary, pre="gpt-2")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert read(tmp_path, size, phi3_vocabulary, pre="gpt-2") == (alone, [])
    assert alone["tokenizer.ggml.model"].value == "gpt2"
