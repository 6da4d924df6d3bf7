"""From a word to a model: what every command makes of what it is given.

    locate(WORD) -> Reference     looks on this machine only
    Reference.fetch(report)       the model's path, fetched first where it is on the hub; of
                                  a folder with a GGUF instead of a checkpoint, that file
    Reference.open(report)        the same, with what a stored model sets beside its weights

A word means the first of these that holds:

1. a path, if it begins with / . or ~, or ends as files of weights do;
2. a GGUF file, or a folder with weights, config.json or a GGUF;
3. a model of the store;
4. with hf.co/ in front, a model of the Hugging Face hub;
5. any other file or folder that is there: its reader says what it lacks.

So neither a stray file nor an empty folder hides a stored model; one that a model in this folder
hides is told of when that is opened. What is told to be an id of the
hub (`hub`) is one, whatever is here.
"""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from gpukit.errors import ArgumentError, CheckpointError, NotFoundError, StoreError
from gpukit.events import Report, Warned, ignore
from gpukit.formats.folder import check_files, has_weights
from gpukit.formats.gguf_reader import is_gguf
from gpukit.formats.gguf_split import part_of
from gpukit.formats.paths import expanded
from gpukit.remote.hub import HubModel, fetch, fetch_adapter, is_id, parse_id
from gpukit.store.models import ResolvedModel
from gpukit.store.names import ModelName
from gpukit.store.store import Store

# What begins or ends so is never a name.
PATH_STARTS = ("/", ".", "~")
PATH_ENDS = (".gguf", ".safetensors", ".bin", ".pth")
WANTED = "a path, the name of a model in the store or an id of the hub is wanted"
WANTED_ADAPTER = "the path of an adapter or an id of the hub is wanted"
# Characters of a word that a message shows.
SHOWN = 100
LIKE_AN_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


@dataclass(frozen=True)
class Reference:
    """What `word` means: a path that is there, a model of `store`, or one of the hub, which may
    have to be fetched. `hidden` is the model of the store that a path of its name hides."""

    word: str
    model: Path | ModelName | HubModel
    store: Store
    hidden: ModelName | None = None

    def called(self, path: Path) -> str:
        """What messages call the model, which is at `path`: a stored one by its name."""
        return self.model.display if isinstance(self.model, ModelName) else str(path)

    def fetch(self, report: Report = ignore) -> Path:
        """The file or folder of the model on this machine; errors as `open`, and StoreError for a
        stored model with adapters, which are no part of that file."""
        found = self.open(report)
        if found.adapters:
            count = f"{len(found.adapters)} adapter{'s' if len(found.adapters) > 1 else ''}"
            raise StoreError(
                f"{self.word}: a model with {count} beside its weights: merge them with gpukit "
                f"create NEW --merge and FROM {self.word}, or name its weights, {found.gguf}"
            )
        return found.gguf

    def open(self, report: Report = ignore) -> ResolvedModel:
        """The model, with everything that its layers set if it is a stored one.

        `HubError` where the hub does not give it, StoreError where the store has it damaged,
        `CheckpointError` for a folder with several GGUFs and no checkpoint.
        """
        if self.hidden is not None:
            report(Warned(
                f"{self.word} is what is in this folder, not the model of the store: "
                f"{self.hidden.display} names that"
            ))  # fmt: skip
        match self.model:
            case ModelName() as name:
                return self.store.open(name)
            case HubModel() as model:
                return ResolvedModel(fetch(model, report))
            case path:
                return ResolvedModel(_gguf_instead(path) or path)


def locate(
    word: str | Path, *, hub: bool = False, folder: Path = Path(), store: Store | None = None
) -> Reference:
    """What `word` means; a `Path` is one, and relative ones start at `folder`. Asks nobody but this
    machine.

    NotFoundError, which lists where it was looked for, for what is not there; `ArgumentError` for
    what can be no word for a model, and for an id that can be none of the hub's.
    """
    store = store or Store()
    is_path, word = isinstance(word, Path), _text(word, WANTED)
    if hub:
        return Reference(word, parse_id(word), store)
    path = folder / expanded(word)
    lacking = _lacking(path)
    if is_path or _looks_like_a_path(word):
        if lacking:
            raise NotFoundError(f"{_where(word, path)}: {lacking}")
        return Reference(word, path, store)
    stored, unknown = None, ""
    try:
        name = store.find(word)
        stored = name if store.has(name) else None
    except (ArgumentError, StoreError) as error:  # no name, or no place for a store
        unknown = str(error)
    if not lacking and _holds_model(path):
        return Reference(word, path, store, hidden=stored)
    if stored is not None:
        return Reference(word, stored, store)
    if is_id(word):
        return Reference(word, parse_id(word), store)
    if not lacking:
        return Reference(word, path, store)
    unknown = unknown or f"no model of that name in {store.root}{store.similar(word)}"
    if LIKE_AN_ID.fullmatch(word):
        unknown += f"; for a model of the Hugging Face hub write hf.co/{word}"
    raise NotFoundError(f"{_where(word, path)}: {lacking}, and {unknown}")


def locate_adapter(word: str | Path, *, folder: Path = Path()) -> Path | HubModel:
    """The adapter that `word` means: a path that is there, relative ones from `folder` on, or an id
    of the hub with hf.co/ in front. Asks nobody but this machine.

    NotFoundError for what is not there, `ArgumentError` for what can be no word for an adapter.
    """
    text = _text(word, WANTED_ADAPTER)
    path = folder / expanded(text)
    lacking = _lacking(path)
    if not lacking:
        return path
    if not isinstance(word, Path) and is_id(text):
        return parse_id(text)
    hint = ""
    if LIKE_AN_ID.fullmatch(text) and not _looks_like_a_path(text):
        hint = f"; for an adapter of the Hugging Face hub write hf.co/{text}"
    raise NotFoundError(f"{_where(text, path)}: {lacking}{hint}")


def adapter_path(word: str | Path, *, folder: Path = Path(), report: Report = ignore) -> Path:
    """Where the adapter is that `word` means, fetched first where it is on the hub.

    NotFoundError, `ArgumentError` and `HubError` as `locate_adapter` and `Reference.fetch`.
    """
    return fetched_adapter(locate_adapter(word, folder=folder), report)


def fetched_adapter(found: Path | HubModel, report: Report = ignore) -> Path:
    """Where what `locate_adapter` has found is on this machine; `HubError` as `Reference.fetch`."""
    return fetch_adapter(found, report) if isinstance(found, HubModel) else found


def _text(word: object, wanted: str) -> str:
    text, is_word = str(word), isinstance(word, str | PathLike)
    if not is_word or not text.strip() or "\0" in text:
        shown = text[:SHOWN]
        raise ArgumentError(f"{repr(shown) if is_word else shown}: {wanted}")
    return text


def _looks_like_a_path(word: str) -> bool:
    return word.startswith(PATH_STARTS) or (word.endswith(PATH_ENDS) and not is_id(word))


def _lacking(path: Path) -> str:
    """Why nothing can be read at `path`; '' where there is something."""
    try:
        return "" if path.exists() else "no such file or folder"
    except OSError as error:
        return error.strerror or str(error)


def _holds_model(path: Path) -> bool:
    """Whether a GGUF is at `path`, or a folder that somebody made to hold a model."""
    try:
        if not path.is_dir():
            return path.is_file() and is_gguf(path)
        return (path / "config.json").exists() or has_weights(path) or any(path.glob("*.gguf"))
    except OSError:  # of what may not be read nobody can tell
        return False


def _gguf_instead(folder: Path) -> Path | None:
    """The GGUF of a folder that has no checkpoint, the first part of a split one; else None."""
    parts = {path: part_of(path.name) for path in sorted(folder.glob("*.gguf"))}
    found = [path for path, part in parts.items() if part is None or part[1] == 1]
    if not found or (has_weights(folder) and (folder / "config.json").exists()):
        return None
    check_files(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise CheckpointError(f"{folder}: {len(found)} .gguf files ({names}): name one of them")
    return found[0]


def _where(word: str, path: Path) -> str:
    """The word, and the path that it would be where that says more."""
    if len(word) > SHOWN:
        return f"{word[:SHOWN]}…"
    return word if not path.is_absolute() or str(path) == word else f"{word}: {path}"
