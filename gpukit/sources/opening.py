"""From a path to a source."""

from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.errors import ArgumentError, NotFoundError
from gpukit.formats.gguf_reader import is_gguf
from gpukit.sources.base import ModelSource
from gpukit.sources.gguf import GGUFSource

if TYPE_CHECKING:
    from gpukit.sources.converter_process import Converter
    from gpukit.sources.merged import Merge

# Endings of files that are a part of a checkpoint: weights, and what describes them.
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
PARTS = (*WEIGHTS, ".json", ".jinja", ".model")
PRE_FOR_FOLDERS = "a GGUF has its pre-tokenizer; --pre is for model folders"


def check_whole(path: Path) -> None:
    """`ArgumentError` for a file out of a model folder."""
    kind = path.suffix.lower()
    if kind in PARTS and not is_gguf(path):
        raise ArgumentError(
            f"{path}: weights without their model; name the folder that has config.json beside them"
            if kind in WEIGHTS
            else f"{path}: one file of a model; name the folder, {path.parent}"
        )


def open_source(
    path: Path,
    pre: str | None = None,
    merge: "Merge | None" = None,
    converter: "Converter | None" = None,
    mtp: bool | None = None,
) -> ModelSource:
    """The model at `path`: a folder with a checkpoint, or a GGUF file; the errors of its reader.

    `pre` names the pre-tokenizer of a folder with a byte-level BPE; `merge` tells the adapters that
    are merged on the way; `converter` is llama.cpp's, where that shall read the folder. `mtp` has
    of a folder the layers alone that guess further tokens, False all but those.
    """
    if converter is not None:
        # Without one nothing of it is needed.
        from gpukit.sources.converter import ConverterSource, refuse_adapters

        if merge is not None:
            refuse_adapters(path)
        if pre is not None:
            raise ArgumentError(f"{path}: --converter has its pre-tokenizers; leave --pre out")
        if mtp is not None:
            raise ArgumentError(
                f"{path}: --mtp and --no-mtp are not for --converter; give it --converter-arg="
                "--mtp or --converter-arg=--no-mtp"
            )
        return ConverterSource(path, converter)
    if path.is_dir():
        # Every architecture takes time to import.
        from gpukit.sources.checkpoint import CheckpointSource

        return CheckpointSource(path, pre, merge, mtp=mtp)
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder")
    check_whole(path)
    if pre is not None:
        raise ArgumentError(f"{path}: {PRE_FOR_FOLDERS}")
    if mtp is not None:
        raise ArgumentError(f"{path}: a GGUF has its layers; --mtp and --no-mtp are for folders")
    return GGUFSource(path, merge)
