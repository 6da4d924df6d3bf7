"""The vocabulary of a Hugging Face folder as GGUF metadata, as llama.cpp's converter writes it.

Tried in this order: `tokenizer.model` (sentencepiece), `tokenizer.json` of a sentencepiece model
(BPE with byte fallback), `tokenizer.json` of a byte-level BPE.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, ValueType, array, boolean, string
from gpukit.tokenizer.files import read_json
from gpukit.tokenizer.recognition import recognise
from gpukit.tokenizer.special import special_fields
from gpukit.tokenizer.types import TokenType

# What slots without a token hold, and the score of added tokens.
PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0

# Vocabulary sizes that stand for a model family with facts of its own.
CODE_LLAMA = 32016
GRANITE_SMALL = 49152
CODE_LLAMA_IDS = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}


def vocabulary_fields(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None
) -> list[Field]:
    """Every tokenizer.* field for a Llama in `folder`, in the converter's order.

    `config` is config.json (its vocab_size counts); `pre` names the pre-tokenizer of a byte-level
    BPE that is not recognised. `TokenizerError` for a vocabulary that is missing, unknown, broken
    or larger than the embedding.
    """
    size = int(config["vocab_size"])
    settings = read_json(folder / "tokenizer_config.json") or {}
    fields = []
    if (prefix := settings.get("add_prefix_space")) is not None:
        fields.append(boolean("tokenizer.ggml.add_space_prefix", bool(prefix)))
    if (folder / "tokenizer.model").is_file():
        fields += sentencepiece_fields(folder, size)
    else:
        fields += _tokenizer_json(folder, size, pre)
    if size == CODE_LLAMA:
        fields += special_fields(folder, kinds=tuple(CODE_LLAMA_IDS), ids=CODE_LLAMA_IDS)
    if size == GRANITE_SMALL:
        fields.append(boolean("tokenizer.ggml.add_bos_token", False))
    return last_values(fields)


def last_values(fields: list[Field]) -> list[Field]:
    """A key set twice keeps its first place and its last value."""
    return list({field.key: field for field in fields}.values())


def _listed(
    model: str, pre: str, tokens: list[str], scores: list[float] | None, types: list[int]
) -> list[Field]:
    fields = [
        string("tokenizer.ggml.model", model),
        string("tokenizer.ggml.pre", pre),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
    ]
    if scores is not None:
        fields.append(array("tokenizer.ggml.scores", ValueType.FLOAT32, scores))
    return [*fields, array("tokenizer.ggml.token_type", ValueType.INT32, types)]


# A token added after training: id, text and type.
Added = tuple[int, str, TokenType]


def sentencepiece_fields(
    folder: Path, size: int, added: Callable[[Path], Iterable[Added]] | None = None
) -> list[Field]:
    """The fields of a folder with a tokenizer.model, padded to `size` tokens; `added` finds the
    tokens that were added after training."""
    pieces = _pieces(folder / "tokenizer.model")
    if len(pieces) > size:
        raise TokenizerError(
            f"{folder / 'tokenizer.model'}: {len(pieces)} tokens, config.json has a vocab_size of "
            f"{size}; the model has no embedding for the rest"
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores = [PAD_SCORE] * size
    types = [int(TokenType.UNUSED)] * size
    for number, (text, score, kind) in enumerate(pieces):
        tokens[number], scores[number], types[number] = text, score, int(kind)
    for number, text, kind in (added or _added)(folder):
        if number < size:
            tokens[number], scores[number], types[number] = text, ADDED_SCORE, int(kind)
    special = special_fields(folder, size=size)
    return [*_listed("llama", "default", tokens, scores, types), *special]


def _pieces(path: Path) -> list[tuple[str, float, TokenType]]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(path.read_bytes())
        return [
            (model.IdToPiece(i), model.GetScore(i), _piece_type(model, i))
            for i in range(model.vocab_size())
        ]
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: no sentencepiece model: {error}") from None


def _piece_type(model: Any, number: int) -> TokenType:
    if model.IsUnknown(number):
        return TokenType.UNKNOWN
    if model.IsControl(number):
        return TokenType.CONTROL
    if model.IsUnused(number):
        return TokenType.UNUSED
    if model.IsByte(number):
        return TokenType.BYTE
    return TokenType.NORMAL


def _added(folder: Path) -> Iterator[Added]:
    yield from added_tokens_file(folder)
    for number, text, special in added_tokens_decoder(folder):
        if special or looks_special(text):
            yield number, text, TokenType.CONTROL
        else:
            yield number, text.replace("\u2581", " "), TokenType.USER_DEFINED


def added_tokens_file(folder: Path) -> Iterator[Added]:
    """The tokens in added_tokens.json."""
    path = folder / "added_tokens.json"
    for text, number in (read_json(path) or {}).items():
        yield _number(number, path), text, TokenType.USER_DEFINED


def added_tokens_decoder(folder: Path) -> Iterator[tuple[int, str, bool]]:
    """Id, text and whether it is special, of the tokens in tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    decoder = (read_json(path) or {}).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{path}: added_tokens_decoder is no object")
    for key, entry in decoder.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{path}: added_tokens_decoder: {key!r} has no content")
        yield _number(key, path), entry["content"], bool(entry.get("special"))


def added_tokens_of_library(folder: Path) -> Iterator[tuple[int, str, bool]]:
    """The same of the tokens in tokenizer.json."""
    path = folder / "tokenizer.json"
    entries = (read_json(path) or {}).get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{path}: an added token has no content")
        yield _number(entry.get("id"), path), entry["content"], bool(entry.get("special"))


def _number(value: Any, path: Path) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0:
        raise TokenizerError(f"{path}: {value!r} is no token id")
    return number


def looks_special(text: str) -> bool:
    """Whether a token that is not marked special is one by its looks."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def byte_level_fields(folder: Path, size: int, pre: str | None) -> list[Field]:
    """The fields of a folder with a byte-level BPE in tokenizer.json, padded to `size` tokens."""
    data = _bpe(folder)
    if data["model"].get("byte_fallback"):
        raise TokenizerError(
            f"{folder / 'tokenizer.json'}: a sentencepiece vocabulary; copy the model's "
            "tokenizer.model into the folder"
        )
    return _byte_level(folder, folder / "tokenizer.json", data, size, pre)


def _tokenizer_json(folder: Path, size: int, pre: str | None) -> list[Field]:
    data = _bpe(folder)
    if data["model"].get("byte_fallback"):
        return _byte_fallback(folder, folder / "tokenizer.json", data, size)
    return _byte_level(folder, folder / "tokenizer.json", data, size, pre)


def _bpe(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    data = read_json(path)
    if data is None:
        raise TokenizerError(
            f"{folder}: no tokenizer.model and no tokenizer.json; copy the tokenizer of the model "
            "into the folder"
        )
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise TokenizerError(f"{path}: model {str(kind)[:40]!r}; BPE can be imported")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"{path}: {key} {str(model[key])[:40]!r}; a GGUF cannot say that")
    return data


def _vocabulary(path: Path, data: Mapping[str, Any], size: int) -> dict[int, str]:
    """Text by id, added tokens included; no id may lie behind the embedding."""
    vocab = data["model"].get("vocab")
    added = data.get("added_tokens") or []
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise TokenizerError(f"{path}: no vocab or added_tokens")
    texts = {_number(number, path): text for text, number in vocab.items()}
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{path}: an added token has no content")
        texts[_number(entry.get("id"), path)] = entry["content"]
    if texts and max(texts) >= size:
        raise TokenizerError(
            f"{path}: token id {max(texts)}, config.json has a vocab_size of {size}; the model has "
            "no embedding for it"
        )
    return texts


def _byte_fallback(folder: Path, path: Path, data: Mapping[str, Any], size: int) -> list[Field]:
    """A sentencepiece model as tokenizer.json: texts without scores."""
    texts = _vocabulary(path, data, size)
    special = {entry["id"] for entry in data.get("added_tokens") or [] if entry.get("special")}
    base = len(data["model"]["vocab"])
    types = []
    for number in range(len(texts)):
        if number not in texts:
            raise TokenizerError(f"{path}: no token has the id {number}")
        text = texts[number]
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types.append(int(TokenType.BYTE))
        elif number in special:
            types.append(int(TokenType.CONTROL))
        else:
            types.append(int(TokenType.NORMAL if number < base else TokenType.USER_DEFINED))
    tokens = [texts[number] for number in range(len(texts))]
    scores = [ADDED_SCORE] * len(tokens)
    return [
        *_listed("llama", "default", tokens, scores, types),
        *special_fields(folder, size=len(tokens)),
    ]


def _byte_level(
    folder: Path, path: Path, data: Mapping[str, Any], size: int, pre: str | None
) -> list[Field]:
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path}: no tokenizer: {error}") from None
    texts = _vocabulary(path, data, size)
    added = {entry["id"]: entry for entry in data.get("added_tokens") or []}
    tokens, types = [], []
    for number in range(size):
        text, kind = _byte_level_token(library, texts.get(number), added.get(number))
        tokens.append(text if text is not None else f"[PAD{number}]")
        types.append(int(kind))
    name = recognise(library, path, pre)
    special = special_fields(folder, merges=True)
    return [*_listed("gpt2", name, tokens, None, types), *special]


def _byte_level_token(
    library: Any, text: str | None, entry: Mapping[str, Any] | None
) -> tuple[str | None, TokenType]:
    if text is None:
        return None, TokenType.UNUSED
    if entry is None:
        return text, TokenType.NORMAL
    if not entry.get("normalized"):
        ids = library.encode(text, add_special_tokens=False).ids
        text = library.decode(ids, skip_special_tokens=False)
    if entry.get("special") or looks_special(text):
        return text, TokenType.CONTROL
    return text.replace("\u2581", " "), TokenType.USER_DEFINED
