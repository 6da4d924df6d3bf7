"""A Hugging Face folder: its config.json and the tensors of all its files of weights."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpukit.errors import CheckpointError, counted
from gpukit.formats.closing import Closing
from gpukit.formats.folder import NAMINGS, check_files, file_names, read_json, weight_files
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile, StoredTensor


class Checkpoint(Closing):
    """A Hugging Face folder: its `config` and the `tensors` of all its files of weights; `unread`
    are those beside them that an index does not list.

    Tensors stand in the order that llama.cpp reads them: files by name; names sorted within a
    safetensors file, as they come in one of PyTorch. Raises `CheckpointError`, `SafetensorsError`
    or `PytorchError` for what is missing, twice there, malformed, or a link out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no such folder")
        check_files(self.folder)
        config = self.read_json("config.json")
        if config is None:
            raise CheckpointError(
                f"{self.folder}: no config.json; a Hugging Face model folder is needed"
            )
        self.config: dict[str, Any] = config
        self.unread: tuple[str, ...] = ()
        index, parts = self._parts()
        with ExitStack() as stack:
            self.files: dict[Path, SafetensorsFile | PytorchFile] = {}
            for path in parts:
                self.files[path] = _opened(path)
                stack.callback(self.files[path].close)
            self.tensors: Mapping[str, StoredTensor] = self._merged()
            if index is not None:
                self._check_index(index)
            self._stack = stack.pop_all()

    def _parts(self) -> tuple[str | None, list[Path]]:
        """The index, if there is one, and the files to read."""
        there = file_names(self.folder)
        found = weight_files(there)
        if found is None:
            wanted = ", ".join(pattern for naming in NAMINGS for pattern in naming.patterns)
            shown = ", ".join(sorted(there)[:8]) or "nothing"
            raise CheckpointError(f"{self.folder}: no weights ({wanted}); found {shown}")
        naming, names = found
        if naming.index not in there:
            return None, [self.folder / name for name in names]
        weight_map = self._weight_map(naming.index)
        listed = set(weight_map.values())
        self.unread = tuple(name for name in names if name not in listed)
        parts = [self.folder / name for name in sorted(listed)]
        for part in parts:
            if part.name not in there or not part.is_file():
                holds = sum(1 for name in weight_map.values() if name == part.name)
                raise CheckpointError(
                    f"{self.folder / part.name[:80]}: missing; {naming.index} lists it for "
                    f"{counted(holds, 'tensor')}: fetch it again"
                )
        return naming.index, parts

    def _weight_map(self, index: str) -> dict[str, str]:
        weight_map = (self.read_json(index) or {}).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(n, str) and Path(n).name == n for n in weight_map.values())
        ):
            raise CheckpointError(f"{self.folder / index}: no weight_map of file names")
        return weight_map

    def _merged(self) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for file in self.files.values():
            by_name = isinstance(file, SafetensorsFile)
            for name in sorted(file.tensors) if by_name else file.tensors:
                if name in tensors:
                    raise CheckpointError(
                        f"{file.path}: {name} is also in {tensors[name].path.name}; remove one"
                    )
                tensors[name] = file.tensors[name]
        return tensors

    def _check_index(self, index: str) -> None:
        weight_map = self._weight_map(index)
        for what, names in (
            ("lists {} that none of its files holds", weight_map.keys() - self.tensors.keys()),
            ("does not list {} of its files", self.tensors.keys() - weight_map.keys()),
        ):
            if names:
                shown = ", ".join(sorted(names)[:3])
                raise CheckpointError(
                    f"{self.folder / index}: {what.format(counted(len(names), 'tensor'))}: {shown}"
                )

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name` of the folder, None where there is no such file."""
        return read_json(self.folder / name)

    def read_into(self, tensor: StoredTensor, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; safe from several threads."""
        self.files[tensor.path].read_into(tensor, buffer, start)

    @property
    def vocabulary_folder(self) -> Path:
        """Where the tokenizer is."""
        return self.folder

    def __iter__(self) -> Iterator[StoredTensor]:
        return iter(self.tensors.values())

    def close(self) -> None:
        self._stack.close()


def _opened(path: Path) -> SafetensorsFile | PytorchFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PytorchFile(path)
