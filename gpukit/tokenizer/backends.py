"""The two libraries behind `Tokenizer`: sentencepiece and tokenizers, fed from GGUF metadata."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.tokenizer.pretokenizers import PRE_TOKENIZERS
from gpukit.tokenizer.types import TokenType

SPACE = "\u2581"


class SentencePiece:
    """A "llama" vocabulary: pairs merge by score, unknown characters fall back to bytes."""

    add_space_prefix = True
    add_bos = True
    bos_id: int | None = 1
    eos_id: int | None = 2

    def __init__(
        self, tokens: Sequence[str], scores: Sequence[float], types: Sequence[TokenType]
    ) -> None:
        from sentencepiece import SentencePieceProcessor

        self._count = len(tokens)
        self._model = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(_proto(tokens, scores, types))
        except RuntimeError as error:
            raise TokenizerError(f"the vocabulary is no sentencepiece model: {error}") from None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.EncodeAsIds(text)
        return [number for number in ids if number < self._count]

    def token_bytes(self, text: str, kind: TokenType) -> bytes:
        if kind is TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")


def _proto(tokens: Sequence[str], scores: Sequence[float], types: Sequence[TokenType]) -> bytes:
    """The metadata as a serialized sentencepiece model without any normalisation."""
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto()
    model.trainer_spec.model_type = pb2.TrainerSpec.BPE
    whole_bytes = types.count(TokenType.BYTE) == 256
    model.trainer_spec.byte_fallback = whole_bytes
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    kinds = {
        TokenType.NORMAL: pb2.ModelProto.SentencePiece.NORMAL,
        # The library wants exactly one unknown piece; it is added below.
        TokenType.UNKNOWN: pb2.ModelProto.SentencePiece.CONTROL,
        TokenType.CONTROL: pb2.ModelProto.SentencePiece.CONTROL,
        # Cut out of the text before it comes here, so they are never looked for.
        TokenType.USER_DEFINED: pb2.ModelProto.SentencePiece.CONTROL,
        TokenType.UNUSED: pb2.ModelProto.SentencePiece.UNUSED,
        # The library wants all 256 of them or none.
        TokenType.BYTE: pb2.ModelProto.SentencePiece.BYTE
        if whole_bytes
        else pb2.ModelProto.SentencePiece.CONTROL,
    }
    for text, score, kind in zip(tokens, scores, types, strict=False):
        model.pieces.add(piece=text, score=score, type=kinds[kind])
    unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else None
    if unknown is None:
        piece = model.pieces.add(piece="<no unknown token>")
    else:
        piece = model.pieces[unknown]
    piece.type = pb2.ModelProto.SentencePiece.UNKNOWN
    model.trainer_spec.unk_piece = piece.piece
    data: bytes = model.SerializeToString()
    return data


class ByteLevel:
    """A "gpt2" vocabulary: text is cut by expressions, its bytes merge by rank."""

    add_space_prefix = False
    bos_id: int | None = 11
    eos_id: int | None = 11

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: Any) -> None:
        rules = PRE_TOKENIZERS.get("default" if pre is None else pre)
        if rules is None:
            raise TokenizerError(
                f"unknown pre-tokenizer {pre!r}; known: {', '.join(sorted(PRE_TOKENIZERS))}"
            )
        self.add_bos = rules.add_bos
        self._library = _byte_level(tokens, merges, rules.splits, rules.ignore_merges)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, text: str, kind: TokenType) -> bytes:  # noqa: ARG002  (one kind only)
        table = _byte_of()
        try:
            return bytes([table[character] for character in text])
        except KeyError:
            return text.encode("utf-8", "surrogateescape")


def _byte_level(
    tokens: Sequence[str], merges: Sequence[str], splits: Sequence[str], ignore_merges: bool
) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {text: number for number, text in enumerate(tokens)}
    pairs = [_pair(merge) for merge in merges]
    try:
        library = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignore_merges))
        cuts = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"the vocabulary is no byte-level BPE: {error}") from None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    return library


def _pair(merge: str) -> tuple[str, str]:
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
