"""Vocabularies of the families whose folders llama.cpp's converter reads in ways of their own."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, boolean
from gpukit.tokenizer.files import read_json
from gpukit.tokenizer.folder import (
    Added,
    added_tokens_decoder,
    added_tokens_file,
    added_tokens_of_library,
    byte_level_fields,
    last_values,
    sentencepiece_fields,
)
from gpukit.tokenizer.special import special_fields
from gpukit.tokenizer.types import TokenType

# What llama.cpp's converter takes for tokens of every Gemma, CodeGemma's among them.
GEMMA_IDS = {"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107}


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


def gemma_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    *,
    pre: str | None = None,  # noqa: ARG001  (no byte-level BPE here)
) -> list[Field]:
    """The tokenizer.model of a Gemma: no space is put in front, `<end_of_turn>` ends a turn."""
    fields = [
        *_gemma_sentencepiece(folder, config),
        *special_fields(folder, kinds=tuple(GEMMA_IDS), ids=GEMMA_IDS),
        boolean("tokenizer.ggml.add_space_prefix", False),
    ]
    return last_values(fields)


def gemma2_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    *,
    pre: str | None = None,  # noqa: ARG001  (no byte-level BPE here)
) -> list[Field]:
    """The tokenizer.model of a Gemma 2 or 3: no space is put in front."""
    fields = _gemma_sentencepiece(folder, config)
    return [*fields, boolean("tokenizer.ggml.add_space_prefix", False)]


def _gemma_sentencepiece(folder: Path, config: Mapping[str, Any]) -> list[Field]:
    if not (folder / "tokenizer.model").is_file():
        raise TokenizerError(
            f"{folder}: no tokenizer.model; copy it from the model's page into the folder, "
            "tokenizer.json lacks its scores"
        )
    return sentencepiece_fields(folder, int(config["vocab_size"]))


def phi3_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None
) -> list[Field]:
    """The tokenizer.model of a Phi-3 with the tokens added in any of its files, or the byte-level
    BPE of a Phi-4."""
    size = int(config["vocab_size"])
    settings = read_json(folder / "tokenizer_config.json") or {}
    if settings.get("tokenizer_class") == "GPT2Tokenizer":
        return byte_level_fields(folder, size, pre)
    if not (folder / "tokenizer.model").is_file():
        raise TokenizerError(
            f"{folder}: no tokenizer.model, and tokenizer_class in tokenizer_config.json is not "
            "GPT2Tokenizer; copy the tokenizer of the model into the folder"
        )
    return sentencepiece_fields(folder, size, _phi3_added)


def _phi3_added(folder: Path) -> Iterator[Added]:
    yield from added_tokens_file(folder)
    for number, text, special in chain(
        added_tokens_decoder(folder), added_tokens_of_library(folder)
    ):
        yield number, text, TokenType.CONTROL if special else TokenType.USER_DEFINED
