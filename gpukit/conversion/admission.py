"""What FROM and DRAFT may name: whether a file or a folder is a whole model, or a projector."""

from dataclasses import dataclass
from pathlib import Path

from gpukit.errors import ArgumentError, CheckpointError, FormatError
from gpukit.formats.file_types import FILE_TYPE
from gpukit.formats.folder import check_files, has_weights
from gpukit.formats.gguf_split import GGUFModel


@dataclass(frozen=True)
class Header:
    """What a model's GGUF says of itself: architecture, number of weights, `general.file_type`."""

    architecture: str
    weights: int
    file_type: object


@dataclass(frozen=True)
class Checked:
    """A GGUF that is a whole model: its header, the types of its tensors, whether it has parts."""

    path: Path
    header: Header
    types: frozenset[str]
    is_split: bool


def check_gguf(path: Path) -> Checked:
    """The model at `path`; GGUFError, FormatError or ArgumentError where the file is no whole
    one."""
    with GGUFModel(path) as file:
        kind = _kind(file)
        architecture = file.get("general.architecture")
        if not architecture:
            raise FormatError(f"{path}: general.architecture is missing: this is no model")
        weights = sum(info.n_elements for info in file.tensors.values())
        types = frozenset(info.type for info in file.tensors.values())
        header = Header(str(architecture), weights, file.get(FILE_TYPE))
        checked = Checked(path, header, types, file.is_split)
    if kind != "model":
        word = "ADAPTER" if kind == "adapter" else "a second FROM"
        raise ArgumentError(
            f"{path}: a GGUF of type {kind}, not a model: FROM names the model, {word} this"
        )
    return checked


def is_projector(path: Path) -> bool:
    """Whether the GGUF at `path` makes embeddings of images or sounds for a model; `GGUFError`
    where it is none."""
    with GGUFModel(path) as file:
        return _kind(file) == "projector"


def _kind(file: GGUFModel) -> str:
    """`adapter`, `projector` or `model`, judged as Ollama does."""
    kind = file.get("general.type", "model")
    if kind in ("adapter", "projector", "mmproj"):
        return "adapter" if kind == "adapter" else "projector"
    name = file.get("general.architecture")
    sees = name == "clip" or file.get(f"{name}.vision.block_count") is not None
    return "projector" if sees and file.get(f"{name}.block_count") is None else "model"


def check_folder(folder: Path) -> None:
    """CheckpointError where `folder` holds no checkpoint, or what nobody may read."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder}: an adapter, not a model: name it with ADAPTER, and the model that it was "
            "made for with FROM"
        )
    check_files(folder)
    if not has_weights(folder):
        raise CheckpointError(
            f"{folder}: no Modelfile or safetensors files found: FROM wants a folder with "
            "config.json and weights (.safetensors, .bin or .pth), or a .gguf file"
        )
