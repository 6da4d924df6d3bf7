"""An adapter that has been fitted to its base: what becomes of each of the base's tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpukit.adapters.delta import Delta
from gpukit.adapters.values import WeightFile
from gpukit.formats.closing import Closing
from gpukit.formats.folder import read_files
from gpukit.formats.gguf_reader import is_gguf


@dataclass(frozen=True)
class Adapter(Closing):
    """An open adapter called `name`: for tensors of the base, by their names there, the records of
    what is done to them, in order.

    `form` says what it is in a word or two. `added` are tensors that the merged model has and the
    base has not, with the base's tensor that each begins as: a head that is no longer the
    embedding, so that config.json of the result says `tie_word_embeddings` false. `vocabulary` is
    how many rows embedding and head have after it, where it resizes them. `warnings` are lines for
    the user. With `invocation` it works only behind those tokens (aLoRA).
    """

    name: str
    form: str
    deltas: Mapping[str, tuple[Delta, ...]]
    added: Mapping[str, str]
    vocabulary: int | None
    warnings: tuple[str, ...]
    file: WeightFile
    invocation: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read, which nothing may be written to."""
        path = self.file.path
        # A GGUF is all that there is of such an adapter; beside others it is made of them.
        beside = () if is_gguf(path) else read_files(path.parent)
        return (path, *(other for other in beside if other.suffix != ".gguf"))

    def close(self) -> None:
        self.file.close()
