"""Small folders with a tokenizer, and what becomes of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.checkpoints import SENTENCEPIECE
from support.vocabularies import letters, merges
from tokenizers import Tokenizer as Library, models, pre_tokenizers

from gpukit.events import Event, Warned
from gpukit.formats.gguf_fields import Field
from gpukit.tokenizer import vocabulary_fields


def copied(tmp_path: Path, *names: str) -> Path:
    """A folder with these files of tiny-shakespeare."""
    for name in names:
        shutil.copyfile(SENTENCEPIECE / name, tmp_path / name)
    return tmp_path


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text("utf-8")) if path.exists() else {}
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def byte_level(folder: Path) -> list[str]:
    """Write a byte-level BPE with one special token, the last, into `folder`; its tokens."""
    tokens = list(dict.fromkeys([*letters(), *(a + b for a, b in merges())]))
    library = Library(models.BPE(vocab={t: n for n, t in enumerate(tokens)}, merges=list(merges())))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(["<|eot_id|>"])
    library.save(str(folder / "tokenizer.json"))
    return [*tokens, "<|eot_id|>"]


def read(
    folder: Path, size: int, vocabulary: Callable[..., list[Field]] = vocabulary_fields, **how: Any
) -> tuple[dict[str, Field], list[str]]:
    """The fields by key, and what was told."""
    told: list[Event] = []
    fields = vocabulary(folder, {"vocab_size": size}, report=told.append, **how)
    return {f.key: f for f in fields}, [e.text for e in told if isinstance(e, Warned)]
