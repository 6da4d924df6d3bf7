"""Types of tokens, by their number in GGUF metadata, and how sentencepiece spells spaces and
bytes."""

import re
from enum import IntEnum

SPACE = "\u2581"
BYTE_TEXTS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# A byte that is no UTF-8, as metadata keep it in a text.
NO_UTF8 = re.compile("([\udc80-\udcff])")


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
