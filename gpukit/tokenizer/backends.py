"""The two libraries behind `Tokenizer`: sentencepiece and tokenizers, fed from GGUF metadata."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.tokenizer.merges import Pair, check_merges
from gpukit.tokenizer.pretokenizers import PreTokenizer
from gpukit.tokenizer.types import BYTE_TEXTS, NO_UTF8, SPACE, TokenType


class SentencePiece:
    """A "llama" vocabulary: pairs merge by score, unknown characters fall back to bytes."""

    add_space_prefix = True
    add_bos = True
    cleans = False
    bos_id: int | None = 1
    eos_id: int | None = 2

    def __init__(
        self, tokens: Sequence[str], scores: Sequence[float], types: Sequence[TokenType]
    ) -> None:
        from sentencepiece import SentencePieceProcessor

        self._count = len(tokens)
        self._bytes = {text: number for number, text in enumerate(tokens) if text in BYTE_TEXTS}
        self._model = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(_proto(tokens, scores, types))
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(f"the vocabulary is no sentencepiece model: {error}") from None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in NO_UTF8.split(text):
            if NO_UTF8.match(part):
                byte = part.encode("utf-8", "surrogateescape")[0]
                ids.append(self._bytes.get(f"<0x{byte:02X}>", self._count))
            else:
                ids += self._model.EncodeAsIds(part)
        return [number for number in ids if number < self._count]

    def token_bytes(self, text: str, kind: TokenType) -> bytes:
        return _piece_bytes(text, kind)


def _proto(tokens: Sequence[str], scores: Sequence[float], types: Sequence[TokenType]) -> bytes:
    """The metadata as a serialized sentencepiece model without any normalisation.

    llama.cpp looks pieces and bytes up by their texts, whatever their types are; the types here
    make the library do the same.
    """
    from sentencepiece import sentencepiece_model_pb2 as pb2

    kinds = pb2.ModelProto.SentencePiece
    model = pb2.ModelProto()
    model.trainer_spec.model_type = pb2.TrainerSpec.BPE
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    for number, (text, score) in enumerate(zip(tokens, scores, strict=False)):
        # No text in UTF-8 has a token in it that is not; a blank is none of its characters either.
        piece = f" {number}" if NO_UTF8.search(text) else text
        model.pieces.add(piece=piece, score=score, type=kinds.NORMAL)
    # The library wants all bytes or none, and exactly one unknown piece.
    numbers = {text: number for number, text in enumerate(tokens)}
    whole_bytes = numbers.keys() >= BYTE_TEXTS
    model.trainer_spec.byte_fallback = whole_bytes
    for text in BYTE_TEXTS if whole_bytes else ():
        model.pieces[numbers[text]].type = kinds.BYTE
    unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else None
    if unknown is None:
        model.pieces.add(piece="<no unknown token>")
    piece = model.pieces[-1 if unknown is None else unknown]
    piece.type = kinds.UNKNOWN
    model.trainer_spec.unk_piece = piece.piece
    data: bytes = model.SerializeToString()
    return data


class ByteLevel:
    """A "gpt2" vocabulary: text is cut by expressions, its bytes merge by rank."""

    add_space_prefix = False
    eos_id: int | None = 11

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], rules: PreTokenizer) -> None:
        self.add_bos = rules.add_bos
        self.bos_id = rules.bos
        self.cleans = rules.cleans
        self._count = len(tokens)
        self._library = _byte_level(tokens, merges, rules)

    def encode(self, text: str) -> list[int]:
        text = NO_UTF8.sub("\ufffd", text)
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return [number for number in ids if number < self._count]

    def token_bytes(self, text: str, kind: TokenType) -> bytes:
        if kind is TokenType.BYTE:
            return _piece_bytes(text, kind)
        table = _byte_of()
        try:
            return bytes([table[character] for character in text])
        except KeyError:
            return text.encode("utf-8", "surrogateescape")


class CharacterLevel:
    """A vocabulary like sentencepiece's in the form of a BPE: characters merge by rank, line by
    line, and those that are no tokens fall back to bytes."""

    add_space_prefix = False
    eos_id: int | None = 11

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], rules: PreTokenizer) -> None:
        self.add_bos = rules.add_bos
        self.bos_id = rules.bos
        self.cleans = rules.cleans
        self._ids = {text: number for number, text in enumerate(tokens)}
        self._library = _bpe(tokens, merges, BYTE_TEXTS, byte_fallback=True)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        text = NO_UTF8.sub("\ufffd", text.replace(" ", SPACE))
        for piece in re.findall(r"\n+|[^\n]+", text):
            if piece[0] == "\n" and piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += self._library.encode(piece, add_special_tokens=False).ids
        return [number for number in ids if number < len(self._ids)]

    def token_bytes(self, text: str, kind: TokenType) -> bytes:
        return _piece_bytes(text, kind)


def _piece_bytes(text: str, kind: TokenType) -> bytes:
    if kind is TokenType.BYTE and text in BYTE_TEXTS:
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")


def _byte_level(tokens: Sequence[str], merges: Sequence[str], rules: PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    library = _bpe(tokens, merges, _byte_of(), ignore_merges=rules.ignore_merges)
    cuts = [pre_tokenizers.Split(Regex(split), "isolated") for split in rules.splits]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    return library


def _bpe(
    tokens: Sequence[str], merges: Sequence[str], spelled: Iterable[str], **options: bool
) -> Any:
    """A BPE of the library; `spelled` are the texts that bytes have.

    Bytes without a token get an id behind all others, which nobody sees: the library would drop
    them before it merges, and so pair what stands around them.
    """
    from tokenizers import Tokenizer, models

    # No text in UTF-8 has a token in it that is not.
    vocabulary = {text: n for n, text in enumerate(tokens) if not NO_UTF8.search(text)}
    lacking = [text for text in spelled if text not in vocabulary]
    vocabulary |= {text: number for number, text in enumerate(lacking, len(tokens))}
    # Of equal pairs the first counts.
    pairs = list(dict.fromkeys(_pair(merge) for merge in merges if not NO_UTF8.search(merge)))
    check_merges(pairs, vocabulary, "tokenizer.ggml.merges")
    try:
        return Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, **options))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"the vocabulary is no BPE: {error}") from None


def _pair(merge: str) -> Pair:
    # The space between the two parts is the first behind the first character.
    at = merge.find(" ", 1)
    if at < 0 or at == len(merge) - 1:
        raise TokenizerError(f"merge {merge!r} is no pair")
    return merge[:at], merge[at + 1 :]


@cache
def _byte_of() -> dict[str, int]:
    """The byte of each character of GPT-2's printable alphabet."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return table
