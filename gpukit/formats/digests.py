"""What identifies the files that something is made of: names, sizes, digests."""

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from gpukit.formats.gguf_reader import GGUFFile, is_gguf

# What weights end with; whatever else a model is made of is small.
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pth")
# Bytes of a file of weights without a header of its own that stand for one.
BEGINNING = 1 << 20
# How Ollama's store and Hugging Face's cache name blobs.
_BLOB = re.compile(r"(?:sha256-)?([0-9a-f]{64})")


@dataclass(frozen=True)
class FileDigest:
    """A file: its name, its bytes, the sha256 of its header (of one without, the whole or the
    first MiB), and that of the whole where it is known without reading it all, else ''."""

    name: str
    size: int
    header: str
    whole: str


def digest(path: Path, *, whole: bool = False) -> FileDigest:
    """The digest of the file at `path`; with `whole` all of it is read. Errors of its reader."""
    size = path.stat().st_size
    length = _header(path, size)
    with path.open("rb") as file:
        header = hashlib.sha256(file.read(length)).hexdigest()
        known = header if length == size else _known(path)
        if whole and not known:
            file.seek(0)
            known = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(path.name, size, header, known)


def _header(path: Path, size: int) -> int:
    """Bytes of the header of a file."""
    if is_gguf(path):
        with GGUFFile(path) as file:
            return min(file.data_start, size)
    if path.suffix == ".safetensors":
        with path.open("rb") as weights:
            (length,) = struct.unpack("<Q", weights.read(8))
        return min(8 + int(length), size)
    return min(BEGINNING, size) if path.suffix in WEIGHTS else size


def _known(path: Path) -> str:
    """The digest by which a store names the file; '' where it has another name."""
    target = Path(os.path.realpath(path))
    match = _BLOB.fullmatch(target.name)
    return match[1] if match and target.parent.name == "blobs" else ""
