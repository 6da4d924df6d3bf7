"""What of a model folder goes over into one with other weights: all but weights and what tells of
them."""

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpukit.errors import ArgumentError, CheckpointError
from gpukit.formats.folder import OTHER, TEMPLATES, check_links, file_names

CONFIG, CARD = "config.json", "README.md"
# Settings, vocabularies, templates, code of the model's own, and what may be done with it.
_CARRIED = (
    "*.json", "*.jinja", "*.model", "*.txt", "*.md", "*.py", "*.tiktoken", "*.spm", "*.vocab",
    "*.bpe", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*",
)  # fmt: skip
# Written anew, or about weights that are not there any more.
_LEFT = (
    CONFIG, CARD, *OTHER, "*.index.json", "hf_quant_config.json", "quant*config.json",
    "recipe.yaml", "trainer_state.json", "*.safetensors*", "*.bin*", "*.pth*", "*.gguf*",
)  # fmt: skip
_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template.*", "*.tiktoken", "spiece.model", "sentencepiece*.model", "*.spm",
)  # fmt: skip


def carried_files(folder: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """The files to be copied by their names in the new folder. A folder `tokenizer` has those of
    the tokenizer, templates included, instead of `folder`.

    `CheckpointError` for links out of the folders; `ArgumentError` for a `tokenizer` without any.
    """
    found = _found(folder)
    if tokenizer is not None:
        if not tokenizer.is_dir():
            raise ArgumentError(f"{tokenizer}: no such folder; a tokenizer's is needed")
        theirs = {n: p for n, p in _found(tokenizer).items() if _is_tokenizer(n)}
        if not theirs:
            raise ArgumentError(f"{tokenizer}: no files of a tokenizer")
        found = {n: p for n, p in found.items() if not _is_tokenizer(n)} | theirs
    return found


def _found(folder: Path) -> dict[str, Path]:
    names = [name for name in file_names(folder) if _matches(name, _CARRIED)]
    kept = [name for name in sorted(names) if not _matches(name, _LEFT)]
    if (folder / TEMPLATES).is_dir():
        templates = sorted(file_names(folder / TEMPLATES))
        kept += [f"{TEMPLATES}/{name}" for name in templates if name.endswith(".jinja")]
    found = {name: folder / name for name in kept}
    check_links(folder, found.values())
    for path in found.values():
        if not path.is_file():
            raise CheckpointError(f"{path}: a link that leads nowhere; remove it")
    return found


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_tokenizer(name: str) -> bool:
    return _matches(name, _TOKENIZER) or name.startswith(f"{TEMPLATES}{os.sep}")


def changed_config(
    config: Mapping[str, Any],
    *,
    vocabulary: int | None = None,
    untied: bool = False,
    dtype: str | None = None,
) -> str:
    """The text of config.json for plain weights: without the settings of a quantisation, with
    `vocabulary` tokens, a head of its own where `untied`, weights of the torch type `dtype`.

    What a text model has to itself in `text_config` changes there, too.
    """
    found = _changed(config, vocabulary, untied, dtype)
    if not any(key in found for key in _DTYPES) and dtype is not None:
        found["dtype"] = dtype
    text = config.get("text_config")
    if isinstance(text, dict):
        found["text_config"] = _changed(text, vocabulary, untied, dtype)
    # A tie that nobody mentions is the default of most classes.
    if untied:
        found["tie_word_embeddings"] = False
    if vocabulary is not None and not isinstance(text, dict):
        found["vocab_size"] = vocabulary
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


_DTYPES = ("dtype", "torch_dtype")
_QUANTIZATION = ("quantization_config", "compression_config")


def _changed(
    config: Mapping[str, Any], vocabulary: int | None, untied: bool, dtype: str | None
) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key not in _QUANTIZATION}
    changes = {
        "vocab_size": vocabulary,
        "tie_word_embeddings": False if untied else None,
        **dict.fromkeys(_DTYPES, dtype),
    }
    for key, value in changes.items():
        if key in found and value is not None:
            found[key] = value
    return found
