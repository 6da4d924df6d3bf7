"""A checkpoint with adapters: the tensors that it has behind them, and the step that makes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import Delta
from gpukit.adapters.experts import Layout
from gpukit.adapters.merging import merge_rows
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.together import combined, weighted
from gpukit.errors import AdapterError, one_line
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.floats import float32
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.packed import find_packed

if TYPE_CHECKING:
    from torch import Tensor

    from gpukit.adapters.mixing import Combining
    from gpukit.sources.nf4 import NF4

BASES = ("full", "nf4", "nf4-single")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Chosen:
    """An adapter that is to be merged: where it is, how much of it, and what it is called if not
    what its file or folder is."""

    path: Path
    weight: float = 1.0
    name: str | None = None


@dataclass(frozen=True)
class Merge:
    """What is to be merged, in order. `strict` refuses an adapter that names another base; `layout`
    tells how the tensors of experts lie where that cannot be seen; `combining` how several become
    one, whose deltas are added up without it; `base`, one of `BASES`, what they are added to: the
    weights as they are, or what QLoRA's four bits make of them, whose scales are in eight bits
    ("nf4") or not ("nf4-single")."""

    adapters: tuple[Chosen, ...]
    strict: bool = False
    layout: Layout | None = None
    combining: "Combining | None" = None
    base: str = "full"

    @property
    def words(self) -> tuple[str, ...]:
        """What each adapter is called in messages: DIR:WEIGHT."""
        return tuple(f"{each.name or each.path}:{each.weight:g}" for each in self.adapters)


@dataclass(frozen=True)
class Deltas:
    """The step: to the rows of each tensor its records, by the tensor's name."""

    records: Mapping[str, Sequence[Delta]]

    def __call__(self, name: str, row: int, rows: "Tensor", /) -> "Tensor":
        records = self.records.get(name)
        return merge_rows(rows, row, records) if records else rows


def open_adapters(merge: Merge, base: Base, stack: ExitStack) -> list[Adapter]:
    """The adapters of `merge`, fitted to `base`, which `stack` closes; the errors of
    `open_adapter`."""
    return [
        stack.enter_context(
            open_adapter(
                chosen.path, base, name=chosen.name, layout=merge.layout, strict=merge.strict
            )
        )
        for chosen in merge.adapters
    ]


def told(merge: Merge, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Lines for the user about the open `adapters` of `merge`."""
    lines = [line for adapter in adapters for line in adapter.warnings]
    for chosen, adapter in zip(merge.adapters, adapters, strict=True):
        if not float32(chosen.weight):
            what = f"a weight of {chosen.weight:g}: it changes nothing"
            lines.append(one_line(f"{adapter.file.path}: {what}"))
    return tuple(lines)


def records_of(merge: Merge, adapters: Sequence[Adapter]) -> Mapping[str, tuple[Delta, ...]]:
    """What the open `adapters` of `merge` do together to each tensor; the errors of `combined` and
    `combine`."""
    weights = [chosen.weight for chosen in merge.adapters]
    how = merge.combining
    if how is None:
        return combined(list(map(weighted, adapters, weights)))
    # What makes one of several computes with torch.
    from gpukit.adapters.combine import combine

    return combine(
        adapters, weights, how.method, density=how.density, rank=how.rank, seed=how.seed,
        majority_sign=how.majority_sign,
    )  # fmt: skip


class MergedCheckpoint(Checkpoint):
    """A Hugging Face folder as it is behind adapters: `config` and `tensors` are those of the
    merged model, whose vocabulary may have another size and whose head may be a tensor of its own.

    What is read are the numbers of the base, zeros for a tensor that gets others; `base_steps` make
    of them what deltas are added to, then `step` adds them. Errors are those of the folder and of
    the adapters.
    """

    def __init__(self, folder: Path, merge: Merge) -> None:
        super().__init__(folder)
        self._resized: frozenset[str] = frozenset()
        with ExitStack() as stack:
            stack.callback(super().close)
            self._refuse_packed()
            self.adapters: Sequence[Adapter] = open_adapters(merge, Base.of(self), stack)
            records = records_of(merge, self.adapters)
            first = self.adapters[0]
            self._add(first.added)
            if first.vocabulary is not None:
                self._resize(first.vocabulary, records)
            self.step = Deltas(records)
            self.base_steps = _base_steps(self, merge.base)
            self.warnings = told(merge, self.adapters)
            self._all = stack.pop_all()

    def _refuse_packed(self) -> None:
        if views := find_packed(self).views:
            raise AdapterError(
                f"{self.folder}: an adapter cannot be merged into packed numbers "
                f"({views[0].sources[-1].name}); convert the folder to a GGUF first, then merge "
                "into that with a type such as F16"
            )

    def _add(self, added: Mapping[str, str]) -> None:
        """Give each new tensor the place in the order that it would have in its file."""
        if not added:
            return
        self.config = {**self.config, "tie_word_embeddings": False}
        tensors = dict(self.tensors)
        for name, begins_as in added.items():
            new = replace(tensors[begins_as], name=name)
            tensors = dict(_inserted(tensors.values(), new))
        self.tensors = tensors

    def _resize(self, rows: int, records: Mapping[str, Sequence[Delta]]) -> None:
        base = Base.of(self)
        names = [name for name in (base.embedding, base.head) if name is not None]
        self._resized = frozenset(n for n in names if self.tensors[n].shape[0] != rows)
        if lacking := sorted(name for name in self._resized if name not in records):
            raise AdapterError(f"{self.folder}: {lacking[0]} has no place for {rows} tokens")
        self.tensors = {
            name: _of_rows(tensor, rows) if name in self._resized else tensor
            for name, tensor in self.tensors.items()
        }
        text = self.config.get("text_config")
        if isinstance(text, dict) and "vocab_size" in text:
            self.config = {**self.config, "text_config": {**text, "vocab_size": rows}}
        if "vocab_size" in self.config or not isinstance(text, dict):
            self.config = {**self.config, "vocab_size": rows}

    @property
    def changed(self) -> frozenset[str]:
        """The names of the tensors that steps change."""
        return frozenset(self.step.records).union(*(step.names for step in self.base_steps))

    @property
    def vocabulary_folder(self) -> Path:
        """That of an adapter that resizes the vocabulary, if it comes with a tokenizer."""
        for adapter in self.adapters:
            folder = adapter.file.path.parent
            if adapter.vocabulary is not None and any((folder / n).exists() for n in TOKENIZERS):
                return folder
        return self.folder

    def read_into(self, tensor: StoredTensor, buffer: memoryview, start: int = 0) -> None:
        if tensor.name in self._resized:
            buffer[:] = bytes(len(buffer))
        else:
            super().read_into(tensor, buffer, start)

    def close(self) -> None:
        self._all.close()


def _base_steps(checkpoint: Checkpoint, base: str) -> "tuple[NF4, ...]":
    if base == "full":
        return ()
    from gpukit.sources.nf4 import NF4

    return (NF4(checkpoint, double=base == "nf4"),)


def _inserted(
    tensors: Iterable[StoredTensor], new: StoredTensor
) -> Iterator[tuple[str, StoredTensor]]:
    """`tensors` by name with `new` before the first of its file whose name follows."""
    waiting, inside = True, False
    for tensor in tensors:
        here = tensor.path == new.path
        if waiting and (tensor.name > new.name if here else inside):
            yield new.name, new
            waiting = False
        inside = here
        yield tensor.name, tensor
    if waiting:
        yield new.name, new


def _of_rows(tensor: StoredTensor, rows: int) -> StoredTensor:
    each = tensor.nbytes // max(tensor.shape[0], 1)
    return replace(tensor, shape=(rows, *tensor.shape[1:]), nbytes=rows * each)
