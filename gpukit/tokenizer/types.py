"""Types of tokens, by their number in GGUF metadata, and how sentencepiece spells spaces and
bytes."""

from enum import IntEnum

SPACE = "\u2581"
BYTE_TEXTS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
