"""What the toolkit commands are given to read: a path, a model of the hub, a name in the store."""

from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.events import Report
from gpukit.remote.hub import located
from gpukit.store import Store

# What begins or ends so is never a name.
PATH_STARTS = ("/", ".", "~")
PATH_ENDS = (".gguf", ".safetensors", ".bin", ".pth")


def find_input(path: Path, report: Report, *, hub: bool = False) -> Path:
    """The file or folder that `path` names: itself, what it is on the hub (with `hub` anything,
    else ids that begin with hf.co/), or the GGUF of the model that is called so in the store.

    `ArgumentError` where there is none of them, `HubError` and `StoreError` where there is one that
    cannot be had.
    """
    found = located(path, report, bare=hub)
    if found.exists():
        return found
    text = str(path)
    if text.startswith(PATH_STARTS) or text.endswith(PATH_ENDS):
        raise ArgumentError(f"{path}: no such file or folder")
    store = Store()
    try:
        name = store.find(text)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: no such file or folder, and {error}") from None
    if not store.has(name):
        raise ArgumentError(
            f"{path}: no such file or folder, and no model of that name in {store.root}"
        )
    return store.open(name).gguf
