"""Adapters for a base that is a GGUF: their records for its tensors, in the order of its rows."""

from contextlib import ExitStack

from gpukit.adapters.gguf import gguf_base
from gpukit.adapters.moved import moved
from gpukit.errors import AdapterError, ArgumentError
from gpukit.formats.closing import Closing
from gpukit.formats.gguf_split import GGUFModel
from gpukit.sources.merged import Deltas, Merge, open_adapters, records_of, told


class MergedGGUF(Closing):
    """The open adapters of `merge` for `model`: `step` does to rows of its tensors what they do.

    `AdapterError` for what only a checkpoint has a place for, and the errors of the adapters.
    """

    def __init__(self, model: GGUFModel, merge: Merge) -> None:
        if merge.base != "full":
            raise ArgumentError(
                f"{model.path}: merge_base {merge.base} is for the checkpoint that an adapter was "
                "trained on; give that, or leave it out"
            )
        base = gguf_base(model)
        with ExitStack() as stack:
            adapters = open_adapters(merge, base, stack)
            for adapter in adapters:
                what = ""
                if adapter.vocabulary is not None:
                    what = f"makes it a vocabulary of {adapter.vocabulary} tokens"
                elif adapter.added:
                    what = "gives it a head that is not its embedding"
                if what:
                    raise AdapterError(
                        f"{adapter.file.path}: {what}, for which a GGUF has no place: merge the "
                        "adapter into the checkpoint that the GGUF was made of"
                    )
            self.step = Deltas(moved(base.rules, records_of(merge, adapters)))
            self.warnings = told(merge, adapters)
            self.files = tuple(path for adapter in adapters for path in adapter.files)
            self._all = stack.pop_all()

    def close(self) -> None:
        self._all.close()
