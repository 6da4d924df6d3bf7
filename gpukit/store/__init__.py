"""The store of models on disk, laid out as Ollama's, and the text that describes a model.

    Store(root).resolve(NAME)       a name -> what to open
    change, copy, remove, collect   the ways to change a store
    check_models                    whether blobs are what their digests say
    modelfile                       Modelfiles, read and written

Nothing here loads torch. Names are imported when they are first used: whoever asks whether a word
names a model wants little of it.
"""

from typing import TYPE_CHECKING

from gpukit_kernels.lazy import lazily

if TYPE_CHECKING:
    from gpukit.store.changes import change, copy, remove, tidy
    from gpukit.store.collecting import Collected, collect
    from gpukit.store.hashing import CheckedModel, check_models
    from gpukit.store.models import ResolvedModel, StoredModel
    from gpukit.store.names import ModelName
    from gpukit.store.store import Store, default_root

_MODULES = {
    "changes": ["change", "copy", "remove", "tidy"],
    "collecting": ["Collected", "collect"],
    "hashing": ["CheckedModel", "check_models"],
    "models": ["ResolvedModel", "StoredModel"],
    "names": ["ModelName"],
    "store": ["Store", "default_root"],
}

__all__ = [
    "CheckedModel",
    "Collected",
    "ModelName",
    "ResolvedModel",
    "Store",
    "StoredModel",
    "change",
    "check_models",
    "collect",
    "copy",
    "default_root",
    "remove",
    "tidy",
]

__getattr__, __dir__ = lazily(globals(), _MODULES)
