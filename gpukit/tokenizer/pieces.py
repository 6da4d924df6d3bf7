"""tokenizer.model, the file of sentencepiece: its pieces with their scores and types."""

import base64
import binascii
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from gpukit.errors import TokenizerError
from gpukit.tokenizer.types import TokenType


class Piece(NamedTuple):
    """A token of a sentencepiece model."""

    text: str
    score: float
    kind: TokenType


def read_pieces(path: Path) -> list[Piece]:
    """The pieces in the file at `path` by id; `TokenizerError` for one that is no sentencepiece
    model."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto()
    try:
        data = path.read_bytes()
        model.ParseFromString(data)
        # One implementation of protobuf gives bytes for a text that is no UTF-8, another raises.
        texts = {piece.piece.encode().decode() for piece in model.pieces}
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    except (DecodeError, UnicodeError, AttributeError):
        what = "tiktoken's" if _is_tiktoken(data) else "broken"
        raise TokenizerError(
            f"{path}: no sentencepiece model but {what}; copy the model's tokenizer.json into the "
            "folder"
        ) from None
    if not model.pieces:
        raise TokenizerError(f"{path}: no sentencepiece model: it has no pieces; fetch it again")
    kinds = (TokenType(piece.type) for piece in model.pieces)
    return [
        Piece(piece.piece, piece.score, _kind(piece.piece, kind, texts))
        for piece, kind in zip(model.pieces, kinds, strict=True)
    ]


def _kind(text: str, kind: TokenType, texts: Collection[str]) -> TokenType:
    """USER_DEFINED pieces are looked for before a text is cut: in a GGUF as in sentencepiece. Runs
    of one character need that not: merging by score makes them, and no space is put behind them."""
    if kind is TokenType.USER_DEFINED and text == text[:1] * len(text):
        shorter = (text[:length] for length in range(2, len(text)))
        if all(part in texts for part in shorter):
            return TokenType.NORMAL
    return kind


def _is_tiktoken(data: bytes) -> bool:
    """Whether the first line is a token in base64 and its rank."""
    token, _, rank = data.partition(b"\n")[0].partition(b" ")
    try:
        return rank.isdigit() and bool(base64.b64decode(token, validate=True))
    except binascii.Error:
        return False
