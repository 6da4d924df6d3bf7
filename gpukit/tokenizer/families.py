"""Vocabularies of the families whose folders llama.cpp's converter reads in ways of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpukit.formats.gguf_fields import Field
from gpukit.tokenizer.folder import byte_level_fields, sentencepiece_fields


def plain_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None
) -> list[Field]:
    """tokenizer.model where there is one, else the byte-level BPE of tokenizer.json, as they are.

    `config` is config.json (its vocab_size counts); `pre` names a pre-tokenizer that is not
    recognised. `TokenizerError` for a vocabulary that is missing, broken or too large.
    """
    size = int(config["vocab_size"])
    if (folder / "tokenizer.model").is_file():
        return sentencepiece_fields(folder, size)
    return byte_level_fields(folder, size, pre)
