"""Vocabularies of the families whose folders llama.cpp's converter reads in ways of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.formats.gguf_fields import Field, boolean
from gpukit.tokenizer.folder import byte_level_fields, last_values, sentencepiece_fields
from gpukit.tokenizer.special import special_fields

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
