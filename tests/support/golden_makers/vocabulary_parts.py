"""The parts of llama.cpp's test vocabularies that their texts need: data/vocab/NAME.json.

The whole ones take up to 16 MB. A token or merge that occurs in no text cannot change an id.
Needs llama.cpp's source: GPUKIT_LLAMA_CPP, whose folder models has them.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.vocabularies import letters

from gpukit.formats.gguf_fields import ValueType
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.tokenizer.specials import END_TEXTS, FILL_TEXTS
from gpukit.tokenizer.types import TokenType

SEPARATOR = "\n__ggml_vocab_test__\n"
NAMES = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "mpt",
    "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip


def make(folder: Path) -> list[Path]:
    """Write the parts beside `folder`; their paths."""
    models = Path(os.environ["GPUKIT_LLAMA_CPP"]) / "models"
    made = []
    for name in NAMES:
        path = folder.parent / "vocab" / f"{name}.json"
        found = part(models / f"ggml-vocab-{name}.gguf")
        path.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n")
        made.append(path)
    return made


def part(path: Path) -> dict[str, Any]:
    """What the texts beside the vocabulary at `path` need of it, with the texts and their ids."""
    texts = path.with_name(path.name + ".inp").read_text().split(SEPARATOR)
    # Some files end with an empty line, and the ids of an empty text are one, too.
    lines = path.with_name(path.name + ".out").read_text().split("\n")[: len(texts)]
    with GGUFFile(path) as file:
        keys = {key.removeprefix("tokenizer.ggml."): f for key, f in file.fields.items()}
        tokens, types = keys["tokens"].value, keys["token_type"].value
        scores = keys["scores"].value if "scores" in keys else [0.0] * len(tokens)
        name = file.get("general.name", "")
    words = _spelled(texts, keys["model"].value)
    special = {*END_TEXTS, *(text for kind in FILL_TEXTS.values() for text in kind)}
    return {
        "name": name,
        "size": len(tokens),
        "fields": {
            key: [field.type.name, field.value]
            for key, field in keys.items()
            if field.type is not ValueType.ARRAY
            and not key.startswith(("general.", "tokenizer."))
            and "." not in key
        },
        "tokens": {
            number: [text, kind, score]
            for number, (text, kind, score) in enumerate(zip(tokens, types, scores, strict=True))
            if kind == TokenType.BYTE or text in special or _occurs(text, words)
        },
        "merges": [
            merge
            for merge in (keys["merges"].value if "merges" in keys else ())
            if _occurs(merge[0] + merge[1:].replace(" ", "", 1), words)
        ],
        "texts": texts,
        "ids": [[int(word) for word in line.split()] for line in lines],
    }


def _spelled(texts: Iterable[str], model: str) -> list[str]:
    """The texts as tokens spell them, and plainly, as special tokens do."""
    if model == "gpt2":
        spelled = ["".join(letters()[byte] for byte in text.encode()) for text in texts]
    else:
        spelled = [(" " + text).replace(" ", "\u2581") for text in texts]
    return [*spelled, *texts]


def _occurs(text: str, words: Iterable[str]) -> bool:
    return any(text in word for word in words)
