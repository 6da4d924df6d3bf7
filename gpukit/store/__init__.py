"""The store of models on disk, laid out as Ollama's, and the text that describes a model.

    Store(root).resolve(NAME)       a name -> what to open
    change, copy, remove            the ways to change a store
    modelfile                       Modelfiles, read and written

Nothing here loads torch. Names are imported when they are first used: whoever asks whether a word
names a model wants little of it.
"""

from typing import TYPE_CHECKING

from gpukit_kernels.lazy import lazily

if TYPE_CHECKING:
    from gpukit.store.changes import change, copy, remove, tidy
    from gpukit.store.names import ModelName
    from gpukit.store.store import ResolvedModel, Store, StoredModel, default_root

_MODULES = {
    "changes": ["change", "copy", "remove", "tidy"],
    "names": ["ModelName"],
    "store": ["ResolvedModel", "Store", "StoredModel", "default_root"],
}

__all__ = [
    "ModelName",
    "ResolvedModel",
    "Store",
    "StoredModel",
    "change",
    "copy",
    "default_root",
    "remove",
    "tidy",
]

__getattr__, __dir__ = lazily(globals(), _MODULES)
