"""The store of models on disk, laid out as Ollama's, and the text that describes a model.

    Store(root).resolve(NAME)       a name -> what to open
    change, copy, remove            the ways to change a store
    modelfile                       Modelfiles, read and written

Nothing here loads torch.
"""

from gpukit.store.changes import change, copy, remove, tidy
from gpukit.store.names import ModelName
from gpukit.store.store import ResolvedModel, Store, StoredModel, default_root

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
