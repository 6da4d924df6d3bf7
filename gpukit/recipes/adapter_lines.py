"""What the ADAPTER lines of a Modelfile mean: where they lead, and whether they are merged."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from gpukit.adapters.opening import weights_of
from gpukit.errors import ArgumentError, ModelfileError, NotFoundError
from gpukit.recipes.references import locate_adapter
from gpukit.remote.hub import HubModel
from gpukit.sources.merged import Chosen, Merge
from gpukit.store.manifest import Layer
from gpukit.store.names import ModelName
from gpukit.store.store import Store


def to_merge(
    store: Store,
    source: Path | ModelName,
    paths: Sequence[Path],
    file_type: str | None,
    *,
    merge: bool,
) -> Merge | None:
    """The adapters that go into the weights: with `file_type` or `merge` all of them, those that
    FROM has first; None where they stay beside the weights. ArgumentError where one stands twice,
    and where `merge` has none."""
    if not merge and file_type is None:
        return None
    stored: tuple[Path, ...] = ()
    if isinstance(source, ModelName):
        stored = store.adapters(source, store.manifest(source))
    _check_different(stored, paths)
    if not stored and not paths:
        if merge:
            raise ArgumentError("--merge: there is no ADAPTER to be merged, and FROM has none")
        return None
    # Each by its whole path: many are called checkpoint-500, and a Modelfile gives no names.
    return Merge(tuple(Chosen(path, name=str(path)) for path in (*stored, *paths)))


def _check_different(stored: Sequence[Path], paths: Sequence[Path]) -> None:
    """ArgumentError where two of `paths` are one file, or one is what the store has already."""
    sizes = {path.stat().st_size for path in stored}
    known = {path.name for path in stored}
    for path in paths:
        file = weights_of(path)
        names = {str(file)}
        if file.stat().st_size in sizes:
            names.add(f"sha256-{sha256(file.read_bytes()).hexdigest()}")
        if names & known:
            raise ArgumentError(f"ADAPTER {path}: the model would have it twice; remove one line")
        known |= names


def locate_line(word: str, folder: Path) -> Path | HubModel:
    """What ADAPTER `word` names in a Modelfile of `folder`; errors as `locate_adapter`."""
    try:
        return locate_adapter(word, folder=folder.absolute())
    except NotFoundError as error:
        raise NotFoundError(f"ADAPTER {error}") from None
    except ArgumentError as error:
        raise ModelfileError(f"ADAPTER {error}") from None


def check_digests(new: Sequence[Layer], inherited: Sequence[Layer]) -> None:
    """ArgumentError where one adapter would be in the model twice."""
    known = [layer.digest for layer in (*inherited, *new)]
    for layer in new:
        if known.count(layer.digest) > 1:
            raise ArgumentError(
                f"ADAPTER: the model would have {layer.digest[:19]}… twice; remove one line"
            )
