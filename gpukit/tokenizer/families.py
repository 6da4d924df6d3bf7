"""Vocabularies of the families whose folders llama.cpp's converter reads in ways of their own."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from gpukit.events import Report, ignore
from gpukit.formats.gguf_fields import Field, boolean
from gpukit.tokenizer.added import added_tokens_decoder, added_tokens_file, added_tokens_of_library
from gpukit.tokenizer.folder import Placed, character_fields, last_values, listed_fields
from gpukit.tokenizer.special import special_fields
from gpukit.tokenizer.types import TokenType

# What llama.cpp's converter takes for tokens of every Gemma, CodeGemma's among them.
GEMMA_IDS = {"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107}
# What a reader of a Gemma 4's answers looks for.
GEMMA4_SHOWN = (
    "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
    "<tool_response|>", '<|"|>',
)  # fmt: skip
# Those of every GLM 4.5.
GLM_TEXTS = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}


def plain_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """Whichever vocabulary is in `folder`, as it is; arguments as of `vocabulary_fields`."""
    return last_values(listed_fields(folder, int(config["vocab_size"]), pre, report))


def gemma_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """The vocabulary of a Gemma: no space is put in front, `<end_of_turn>` ends a turn."""
    size = int(config["vocab_size"])
    fields = [
        *listed_fields(folder, size, pre, report),
        *special_fields(folder, size=size, kinds=tuple(GEMMA_IDS), ids=GEMMA_IDS),
        boolean("tokenizer.ggml.add_space_prefix", False),
    ]
    return last_values(fields)


def gemma2_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """The vocabulary of a Gemma 2 or 3: no space is put in front."""
    fields = listed_fields(folder, int(config["vocab_size"]), pre, report)
    return last_values([*fields, boolean("tokenizer.ggml.add_space_prefix", False)])


def gemma4_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """The vocabulary of a Gemma 4, whose characters merge by rank: a text begins with its token for
    that, and what thoughts and calls of tools are marked with is part of the answer."""
    del pre  # the model of the vocabulary says it
    fields = [
        *character_fields(folder, int(config["vocab_size"]), report, GEMMA4_SHOWN),
        boolean("tokenizer.ggml.add_space_prefix", False),
        boolean("tokenizer.ggml.add_bos_token", True),
    ]
    return last_values(fields)


def glm_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """The byte-level BPE of a GLM 4.5, in which the beginning of a text, the ends of a turn and of
    a message, and what is unknown have texts that its files do not name."""
    size = int(config["vocab_size"])
    return last_values(listed_fields(folder, size, pre, report, texts=GLM_TEXTS))


def phi3_vocabulary(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, report: Report = ignore
) -> list[Field]:
    """The vocabulary of a Phi-3, with the tokens added in any of its files to a tokenizer.model, or
    the byte-level BPE of a Phi-4."""
    size = int(config["vocab_size"])
    return last_values(listed_fields(folder, size, pre, report, _phi3_added))


def _phi3_added(folder: Path) -> Iterator[Placed]:
    for entry in added_tokens_file(folder):
        yield entry.number, entry.text, TokenType.USER_DEFINED
    for entry in chain(added_tokens_decoder(folder), added_tokens_of_library(folder)):
        kind = TokenType.CONTROL if entry.special else TokenType.USER_DEFINED
        yield entry.number, entry.text, kind
