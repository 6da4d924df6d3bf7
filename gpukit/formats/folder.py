"""A model folder: which of its files hold the weights, its JSON files, and where links may lead."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.nesting import check_nesting
from gpukit.formats.pointers import POINTER, is_pointer
from gpukit.formats.positioned import read_whole


@dataclass(frozen=True)
class Naming:
    """A way of naming the files of weights, and the index that may list them."""

    patterns: tuple[str, ...]
    index: str | None = None


# The first that a folder has is read; all others are left alone.
NAMINGS = (
    Naming(("model*.safetensors",), "model.safetensors.index.json"),
    Naming(("consolidated*.safetensors",), "consolidated.safetensors.index.json"),
    Naming(("pytorch_model*.bin",), "pytorch_model.bin.index.json"),
    Naming(("consolidated*.pth",)),
    Naming(("*.safetensors",)),
    Naming(("*.bin", "*.pth")),
)
# What stands beside weights under such names and is none of them.
OTHER = (
    "adapter*", "training_args.bin", "optimizer*", "scheduler*", "rng_state*", "random_states*",
)  # fmt: skip

# Whatever is read from a folder ends so.
READ = frozenset(
    (".json", ".jinja", ".model", ".txt", ".md", ".safetensors", ".bin", ".pth", ".gguf")
)
TEMPLATES = "additional_chat_templates"
# Bytes of one of these texts: a few times those of the largest vocabulary there is.
MOST_TEXT = 128 << 20


def weight_files(names: Iterable[str]) -> tuple[Naming, list[str]] | None:
    """The naming that a folder with files `names` follows and its weights, by name; the list is
    empty where only an index is there. None for a folder without weights."""
    there = sorted(names)
    for naming in NAMINGS:
        found = [
            name
            for name in there
            if any(fnmatchcase(name, pattern) for pattern in naming.patterns)
            and not any(fnmatchcase(name, other) for other in OTHER)
        ]
        if found or naming.index in there:
            return naming, found
    return None


def has_weights(folder: Path) -> bool:
    """Whether there are weights in `folder` that a checkpoint can be read from."""
    return weight_files(file_names(folder)) is not None


def file_names(folder: Path) -> list[str]:
    """The names of everything in `folder` that is no folder; links count, wherever they lead."""
    return [path.name for path in folder.iterdir() if path.is_symlink() or path.is_file()]


def model_name(folder: Path) -> str:
    """What the model in `folder` is called: the folder's name, or for a snapshot in Hugging Face's
    cache, whose name is a commit, that of its repository."""
    # A link keeps its own name: those who made it chose it.
    folder = Path(os.path.abspath(folder))
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name


def hub_snapshot(path: Path) -> tuple[str, str] | None:
    """The repository and the revision of a file or folder in Hugging Face's cache, None for any
    other."""
    parts = Path(os.path.abspath(path)).parts
    for at, part in enumerate(parts[1:-1], 1):
        repository = parts[at - 1]
        if part == "snapshots" and repository.startswith("models--"):
            return repository.removeprefix("models--").replace("--", "/"), parts[at + 1]
    return None


def read_json(path: Path, kind: type[CheckpointError] = CheckpointError) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file; `kind` for anything else."""
    try:
        value = json.loads(read_whole(path, MOST_TEXT).decode())
        check_nesting(value)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise kind(f"{path}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise kind(f"{path}: no JSON object")
    return value


def read_text(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """The text in `path`, which is there, with lines as Python ends them; `kind` where it is no
    UTF-8."""
    try:
        text = read_whole(path, MOST_TEXT).decode()
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise kind(f"{path}: byte {error.start} is no UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_files(folder: Path) -> None:
    """`CheckpointError` for a file that is a link out of `folder`, a pipe, a device or a pointer.

    A folder that came from somewhere must not be able to name other files of this machine. Allowed
    is the layout of Hugging Face's cache: `snapshots/<revision>/FILE -> ../../blobs/<digest>`.
    """
    check_links(folder, read_files(folder))


def check_links(folder: Path, paths: Iterable[Path]) -> None:
    """`check_files` for these files of `folder`."""
    root = folder.resolve()
    allowed = [root, *_blobs(root)]
    for path in paths:
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # Python before 3.13 has the second for loops
            raise CheckpointError(f"{path}: a link that leads to itself") from None
        if not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointError(
                f"{path}: a link to {target}, outside the folder; copy that file into the folder"
            )
        # Opening a pipe would wait for its other end.
        if target.exists() and not target.is_file() and not target.is_dir():
            raise CheckpointError(f"{path}: no regular file")
        if is_pointer(path):
            raise CheckpointError(f"{path}: {POINTER}")


def read_files(folder: Path) -> list[Path]:
    """The files of a model folder that are read where they are there."""
    return [*_read(folder), *_read(folder / TEMPLATES)]


def _read(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        return ()
    return [path for path in sorted(folder.iterdir()) if path.suffix in READ]


def _blobs(root: Path) -> list[Path]:
    """Where the files of a snapshot in Hugging Face's cache really are."""
    for parent in (root, *root.parents):
        if parent.name == "snapshots":
            return [parent.parent / "blobs"]
    return []
