"""Names of models and adapters: whether an adapter was made for this base."""

import re
from collections.abc import Sequence
from pathlib import Path

from gpukit.errors import AdapterError, one_line

# What is put behind a model's name when it is quantised for training: the base is the same.
QUANTISED = re.compile(r"(-unsloth)?(-bnb)?-(4|8|16)-?bits?$|-unsloth$|-(bf16|fp16)$")


def check_base_name(path: Path, said: str, names: Sequence[str], *, strict: bool) -> list[str]:
    """A warning where `said`, the base that the adapter at `path` was made for, is none of `names`;
    with `strict` an `AdapterError`."""
    if _plain(said) in {_plain(name) for name in names}:
        return []
    what = one_line(f"{path}: made for {said[:200]}, the base is {names[0]}")
    if strict:
        raise AdapterError(f"{what}: give the base that it was made for, or leave strict out")
    return [f"{what}: a merge with another base makes nonsense of both"]


def _plain(name: str) -> str:
    """A name without its owner, folders and what quantisation has added, in small letters with
    dashes."""
    last = re.split(r"[\\/]", name.rstrip("/\\"))[-1]
    if last.startswith("models--"):
        last = last.rpartition("--")[2]
    elif re.fullmatch(r"[0-9a-f]{40}", last) and "models--" in name:
        last = name.rpartition("models--")[2].partition("/")[0].rpartition("--")[2]
    # A GGUF's general.name has blanks where a folder has hyphens.
    return QUANTISED.sub("", re.sub(r"[\s_]+", "-", last.lower()))
