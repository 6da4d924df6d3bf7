"""Tokens that were added after training, in every place where they can be declared."""

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2 as pb2
from support.tokenizer_folders import byte_level, copied, edited, read

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field
from gpukit.tokenizer import Tokenizer, phi3_vocabulary
from gpukit.tokenizer.types import TokenType

NORMAL, CONTROL, USER_DEFINED = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
CHATML = [("<|im_start|>", True), ("<|im_end|>", True), ("<tool_call>", False)]
CHAT = "<|im_start|>user\nHello<|im_end|>\n<tool_call>"


def entries(first: int, tokens: list[tuple[str, bool]] = CHATML) -> list[dict[str, Any]]:
    """`tokens` from the id `first` on, as tokenizer.json lists them."""
    return [
        {"id": first + number, "content": text, "special": special, **PLAIN}
        for number, (text, special) in enumerate(tokens)
    ]


def declare(folder: Path, place: str, first: int) -> None:
    """Declare CHATML in `folder` from the id `first` on."""
    listed = entries(first)
    if place == "tokenizer.json":
        edited(folder / place, lambda data: data["added_tokens"].extend(listed))
    elif place == "added_tokens_decoder":
        decoder = {str(entry.pop("id")): entry for entry in listed}
        write(folder, "tokenizer_config", {place: decoder})
    else:
        write(folder, "added_tokens", {entry["content"]: entry["id"] for entry in listed})
        named: Any = [text for text, special in CHATML if special]
        if place == "extra_special_tokens":
            named = dict(zip("ab", named, strict=True))
        file = "special_tokens_map" if place == "additional_special_tokens" else "tokenizer_config"
        write(folder, file, {place: named})


def write(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")


def listed(fields: dict[str, Field]) -> tuple[list[str], list[int]]:
    return fields["tokenizer.ggml.tokens"].value, fields["tokenizer.ggml.token_type"].value


PLACES = [
    "tokenizer.json", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("files", [("tokenizer.json",), ("tokenizer.json", "tokenizer.model")])
def test_tokens_of_a_sentencepiece_model(
    place: str, files: tuple[str, ...], tmp_path: Path
) -> None:
    declare(copied(tmp_path, *files), place, 2048)
    found, told = read(tmp_path, 2051)
    tokens, types = listed(found)
    assert not told
    assert tokens[2048:] == [text for text, _ in CHATML]
    assert types[2048:] == [CONTROL, CONTROL, USER_DEFINED]
    # Those of transformers; what is between them llama.cpp begins with a space.
    ids = Tokenizer.from_fields(found).encode(CHAT, add_special=False, parse_special=True)
    assert [number for number in ids if number >= 2048] == [2048, 2049, 2050]


@pytest.mark.parametrize("place", PLACES[1:])
def test_tokens_of_a_tokenizer_model_alone(place: str, tmp_path: Path) -> None:
    declare(copied(tmp_path, "tokenizer.model"), place, 2048)
    tokens, types = listed(read(tmp_path, 2051)[0])
    assert tokens[2048:] == [text for text, _ in CHATML]
    assert types[2048:] == [CONTROL, CONTROL, USER_DEFINED]


@pytest.mark.parametrize("place", PLACES)
def test_tokens_of_a_byte_level_bpe(place: str, tmp_path: Path) -> None:
    size = len(byte_level(tmp_path))
    declare(tmp_path, place, size)
    found, told = read(tmp_path, size + 3, pre="gpt-2")
    tokens, types = listed(found)
    assert not told
    assert tokens[size - 1 :] == ["<|eot_id|>", *(text for text, _ in CHATML)]
    assert types[size - 1 :] == [CONTROL, CONTROL, CONTROL, USER_DEFINED]


@pytest.mark.peer
@pytest.mark.parametrize("place", PLACES[:3])
@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_ids_are_those_of_transformers(kind: str, place: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pre = "gpt-2" if kind == "bytes" else None
    size = len(byte_level(tmp_path)) if kind == "bytes" else 2048
    if kind == "sentencepiece":
        copied(tmp_path, "tokenizer.json")
    declare(tmp_path, place, size)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["eos_token"] = "<|im_end|>"
    # A list of texts does not change what an entry of its own says; a name does.
    settings |= {"extra_special_tokens": ["<tool_call>", "<more>"], "pad_token": "<pad>"}
    edited(tmp_path / "tokenizer_config.json", lambda data: data.update(settings))
    library = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens, types = listed(read(tmp_path, size + 6, pre=pre)[0])
    theirs = library.get_vocab()
    assert {text: number for number, text in enumerate(tokens[: len(theirs)])} == theirs
    # What looks special is, as for llama.cpp's converter.
    special = {n for n, t in library.added_tokens_decoder.items() if t.special or "<|" in str(t)}
    assert {n for n, kind in enumerate(types) if kind == CONTROL} == special


def test_a_piece_that_a_tokenizer_json_calls_special(tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json", "tokenizer.model")
    plain, _ = read(tmp_path, 2048)
    text = listed(plain)[0][1500]
    for special, kind in ((True, CONTROL), (False, USER_DEFINED)):
        copied(tmp_path, "tokenizer.json")
        more = entries(1500, [(text, special)])
        edited(tmp_path / "tokenizer.json", lambda d, more=more: d["added_tokens"].extend(more))
        tokens, types = listed(read(tmp_path, 2048)[0])
        assert types[1500] == kind
        assert tokens[1500] == (text if special else text.replace("\u2581", " "))
        # What was silent keeps its type and score.
        assert types[:1500] == listed(plain)[1][:1500]


def test_a_piece_that_the_settings_call_special(tmp_path: Path) -> None:
    plain, _ = read(copied(tmp_path, "tokenizer.model"), 2048)
    text = listed(plain)[0][1500]
    for key, value in (
        ("pad_token", text),
        ("eos_token", {"content": text}),
        ("additional_special_tokens", [{"content": text}]),
        ("extra_special_tokens", [text]),
        ("model_specific_special_tokens", {"image": text}),
    ):
        write(tmp_path, "tokenizer_config", {key: value})
        assert listed(read(tmp_path, 2048)[0])[1][1500] == CONTROL
    write(tmp_path, "special_tokens_map", {"mask_token": text})
    write(tmp_path, "tokenizer_config", {})
    assert listed(read(tmp_path, 2048)[0])[1][1500] == CONTROL
    # With a list of added tokens transformers does not look into that file.
    write(tmp_path, "tokenizer_config", {"added_tokens_decoder": {}})
    assert listed(read(tmp_path, 2048)[0])[1][1500] == NORMAL


def test_a_list_does_not_make_special_what_has_an_entry(tmp_path: Path) -> None:
    # transformers 5 lists a Gemma's lines among the special tokens.
    declare(copied(tmp_path, "tokenizer.json", "tokenizer.model"), "tokenizer.json", 2048)
    write(tmp_path, "tokenizer_config", {"extra_special_tokens": ["<tool_call>"]})
    assert listed(read(tmp_path, 2051)[0])[1][2050] == USER_DEFINED
    copied(tmp_path, "tokenizer.json")
    declare(tmp_path, "added_tokens_decoder", 2048)
    settings = tmp_path / "tokenizer_config.json"
    edited(settings, lambda data: data.update(additional_special_tokens=["<tool_call>"]))
    assert listed(read(tmp_path, 2051)[0])[1][2050] == USER_DEFINED
    edited(settings, lambda data: data.update(pad_token="<tool_call>"))
    assert listed(read(tmp_path, 2051)[0])[1][2050] == CONTROL


def test_a_renamed_piece(tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json", "tokenizer.model")
    more = entries(1500, [("<mine>", False)])
    edited(tmp_path / "tokenizer.json", lambda data: data["added_tokens"].extend(more))
    found, told = read(tmp_path, 2048)
    assert not told
    assert listed(found)[0][1500] == "<mine>"


def test_a_text_stays_where_it_is(tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json", "tokenizer.model")
    text = listed(read(tmp_path, 2048)[0])[0][1500]
    declare(tmp_path, "tokenizer.json", 2048)
    write(tmp_path, "added_tokens", {text: 2051})
    tokens, _ = listed(read(tmp_path, 2052)[0])
    assert tokens[1500] == text
    assert tokens[2051] == "[PAD2051]"


def proto(folder: Path, *user_defined: str) -> Path:
    """A tokenizer.model of tiny-shakespeare with more pieces, which are user-defined."""
    path = copied(folder, "tokenizer.model") / "tokenizer.model"
    model = pb2.ModelProto.FromString(path.read_bytes())
    for text in user_defined:
        kind = pb2.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=text, score=0.0, type=kind)
    path.write_bytes(model.SerializeToString())
    return path


def test_user_defined_pieces_of_sentencepiece(tmp_path: Path) -> None:
    path = proto(tmp_path, "<turn>", "\u2581\u2581", "\u2581\u2581\u2581", "\n\n\n")
    found, _ = read(tmp_path, 2052)
    tokens, types = listed(found)
    assert tokens[2048:] == ["<turn>", "\u2581\u2581", "\u2581\u2581\u2581", "\n\n\n"]
    # Merging by score makes runs of a blank, but not that of newlines whose half is no piece.
    assert types[2048:] == [USER_DEFINED, NORMAL, NORMAL, USER_DEFINED]
    library, ours = SentencePieceProcessor(str(path)), Tokenizer.from_fields(found)
    for text in ("a<turn>b", "a   b    c  d", "to\n\n\n\nbe", " <turn>"):
        wanted = library.EncodeAsIds(text)
        # llama.cpp puts a space behind what it cuts out, as the older transformers did.
        if "<turn>" not in text and "\n\n\n" not in text:
            assert ours.encode(text, add_special=False) == wanted, text
        assert (2048 in wanted) == (2048 in ours.encode(text, add_special=False)), text
        assert (2051 in wanted) == (2051 in ours.encode(text, add_special=False)), text


def test_control_pieces_of_sentencepiece(tmp_path: Path) -> None:
    path = proto(tmp_path, "<turn>", "<pause>")
    model = pb2.ModelProto.FromString(path.read_bytes())
    model.pieces[2049].type = pb2.ModelProto.SentencePiece.CONTROL
    path.write_bytes(model.SerializeToString())
    assert listed(read(tmp_path, 2050)[0])[1][2048:] == [USER_DEFINED, CONTROL]


def test_tokens_past_the_embedding_are_left_out(tmp_path: Path) -> None:
    for files in (("tokenizer.json",), ("tokenizer.json", "tokenizer.model")):
        folder = tmp_path / "-".join(files)
        folder.mkdir()
        declare(copied(folder, *files), "tokenizer.json", 2048)
        write(folder, "tokenizer_config", {"pad_token": "<|im_end|>"})
        found, (line,) = read(folder, 2049)
        assert listed(found)[0][2048:] == ["<|im_start|>"]
        assert "tokenizer.ggml.padding_token_id" not in found
        assert "2 tokens left out, past the end of the embedding: 2049 '<|im_end|>'," in line


def test_a_pad_token_of_a_byte_level_bpe_past_the_embedding(tmp_path: Path) -> None:
    size = len(byte_level(tmp_path))
    alone, _ = read(tmp_path, size, pre="gpt-2")
    more = entries(size, [("<|PAD_TOKEN|>", True)])
    edited(tmp_path / "tokenizer.json", lambda data: data["added_tokens"].extend(more))
    write(tmp_path, "tokenizer_config", {"pad_token": "<|PAD_TOKEN|>"})
    found, (line,) = read(tmp_path, size, pre="gpt-2")
    assert found == alone
    assert f"1 token left out, past the end of the embedding: {size} '<|PAD_TOKEN|>'" in line
    # A name without an id gets the next one, which is past the end, too.
    byte_level(tmp_path)
    assert read(tmp_path, size, pre="gpt-2") == (alone, [line])


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": "<|im_end|>"},
        {"bos_token": {"content": "<tool_call>"}},
        {"chat_template": "{{ '<|im_start|>' }}"},
        {"chat_template": [{"name": "tools", "template": "<tool_call>"}]},
    ],
)
def test_tokens_past_the_embedding_that_are_needed(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    declare(copied(tmp_path, "tokenizer.json"), "tokenizer.json", 2048)
    write(tmp_path, "tokenizer_config", settings)
    with pytest.raises(TokenizerError, match="has no row in the embedding") as caught:
        read(tmp_path, 2048)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [[1], [{"name": "a", "template": 3}]])
def test_odd_templates_beside_tokens_past_the_embedding(template: Any, tmp_path: Path) -> None:
    declare(copied(tmp_path, "tokenizer.json"), "tokenizer.json", 2048)
    write(tmp_path, "tokenizer_config", {"chat_template": template})
    with pytest.raises(TokenizerError, match="fetch them again"):
        read(tmp_path, 2048)


def test_a_template_without_a_text_beside_tokens_past_the_embedding(tmp_path: Path) -> None:
    declare(copied(tmp_path, "tokenizer.json"), "tokenizer.json", 2048)
    write(tmp_path, "tokenizer_config", {"chat_template": [{"name": 1}]})
    found, lines = read(tmp_path, 2048)
    assert "tokenizer.chat_template" not in found
    assert any("{'name': 1}, not a text by a name: it is passed over" in line for line in lines)
    assert any("left out, past the end of the embedding" in line for line in lines)


def test_a_vocabulary_past_the_embedding_is_refused(tmp_path: Path) -> None:
    copied(tmp_path, "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"token id 2047, config\.json has a vocab_size of 20"):
        read(tmp_path, 2000)


def test_tokens_of_a_phi_3(tmp_path: Path) -> None:
    declare(copied(tmp_path, "tokenizer.json", "tokenizer.model"), "tokenizer.json", 2048)
    tokens, types = listed(read(tmp_path, 2051, phi3_vocabulary)[0])
    assert tokens[2048:] == [text for text, _ in CHATML]
    assert types[2048:] == [CONTROL, CONTROL, USER_DEFINED]
