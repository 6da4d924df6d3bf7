"""Models of the Hugging Face hub, fetched into its own cache by huggingface_hub.

HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the rest of that package's settings
mean here what they mean there. Only what a conversion reads is fetched.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpukit.errors import ArgumentError, HubError
from gpukit.events import Report, Status, Step, Warned
from gpukit.formats.folder import TEMPLATES, read_json, weight_files
from gpukit.formats.gguf_split import part_of

HOSTS = ("hf.co/", "huggingface.co/")
SCHEME = re.compile(r"https?:/+")
# Beside the weights.
WANTED = (".json", ".jinja", ".txt", ".model")
CARD = "README.md"
# An adapter's settings, and its weights in the order of preference: PEFT's, then mlx-lm's.
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class HubModel:
    """A repository on the hub, a revision of it, and one of its files if one is meant."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def display(self) -> str:
        return HOSTS[0] + "/".join(filter(None, (self.repo, self.file)))


def is_id(text: str) -> bool:
    """Whether `text` begins as an id of the hub does, with its host."""
    return SCHEME.sub("", text).startswith(HOSTS)


def parse_id(text: str) -> HubModel:
    """The model that `hf.co/org/name[/FILE.gguf][@revision]` names, with or without the host;
    `ArgumentError` for a text that can be no id."""
    rest = SCHEME.sub("", text)
    host = next((host for host in HOSTS if rest.startswith(host)), "")
    rest, _, revision = rest.removeprefix(host).strip("/").partition("@")
    parts = rest.split("/", 2)
    if len(parts) < 2 or not all(re.fullmatch(r"[\w.\-]+", part) for part in parts[:2]):
        raise ArgumentError(
            f"{text}: no id on the Hugging Face hub; hf.co/org/name is one, with @revision behind "
            "it if need be"
        )
    return HubModel("/".join(parts[:2]), revision or "main", parts[2] if parts[2:] else None)


def fetch(model: HubModel, report: Report) -> Path:
    """The folder of `model` in the cache, or its GGUF, with all that a conversion reads.

    `HubError` where the hub does not have it, refuses it or cannot be reached.
    """
    return _fetched(model, report, "config.json", _fetch_model)


def fetch_adapter(model: HubModel, report: Report) -> Path:
    """The folder of the adapter `model` in the cache, or its GGUF; `HubError` as `fetch`."""
    return _fetched(model, report, ADAPTER, _fetch_adapter)


def _fetched(
    model: HubModel, report: Report, known_by: str, fetching: Callable[["_Fetcher"], Path]
) -> Path:
    """What `fetching` fetches; without the hub what is cached, where `known_by` is."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if HF_HUB_CACHE.startswith("~"):
        # The package would make a folder of that name where the user happens to be.
        _fail(model, "there is no home folder to keep it in: set HF_HOME to a folder")
    report(Status(f"fetching {model.display}"))
    try:
        found = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True)
    except OfflineModeIsEnabled:
        if cached := _cached(model, known_by):
            return cached
        _fail(model, "not in the cache, and HF_HUB_OFFLINE is set")
    except (HfHubHTTPError, HFValidationError) as error:
        refused(model, error)
    except Exception as error:  # of whatever library the package talks HTTP with
        cached = _cached(model, known_by)
        if cached is None:
            refused(model, error)
        report(Warned(f"{model.display}: the hub cannot be reached; using what is cached"))
        return cached
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    return fetching(_Fetcher(model, found.sha or model.revision, sizes, report))


def _fetch_model(fetcher: "_Fetcher") -> Path:
    model, sizes = fetcher.model, fetcher.sizes
    if model.file is not None:
        return fetcher.gguf(_parts(model.file, sizes))
    if weight_files(name for name in sizes if "/" not in name) is not None:
        return fetcher.folder()
    return fetcher.gguf(_only_gguf(model, sizes))


def _fetch_adapter(fetcher: "_Fetcher") -> Path:
    model, sizes = fetcher.model, fetcher.sizes
    if model.file is not None:
        return fetcher.gguf([model.file])
    if ADAPTER in sizes:
        return fetcher.adapter()
    if not any(name.endswith(".gguf") for name in sizes):
        _fail(model, f"no {ADAPTER} there, so no adapter; choose another repository")
    return fetcher.gguf(_only_gguf(model, sizes))


def _only_gguf(model: HubModel, names: Iterable[str]) -> list[str]:
    """The GGUF of a repository without other weights, in its parts."""
    names = sorted(name for name in names if name.endswith(".gguf"))
    firsts = [name for name in names if (part := part_of(name)) is None or part[1] == 1]
    if not firsts:
        _fail(model, "no weights there; choose another repository")
    if len(firsts) > 1:
        shown = ", ".join(firsts[:4]) + (", …" if firsts[4:] else "")
        _fail(
            model,
            f"{len(firsts)} .gguf files ({shown}): name one, as {model.display}/{firsts[0]}",
        )
    return _parts(firsts[0], names)


def _parts(name: str, names: Iterable[str]) -> list[str]:
    """All parts of the split GGUF that begins with `name`, or just that one."""
    part = part_of(name)
    if part is None:
        return [name]
    return sorted(n for n in names if (other := part_of(n)) and other[::2] == part[::2])


class _Fetcher:
    """Fetches files of one revision one after the other, and tells how far it is."""

    def __init__(self, model: HubModel, commit: str, sizes: dict[str, int], report: Report) -> None:
        self.model = model
        self._commit = commit
        self.sizes = sizes
        self._report = report
        self._done = 0
        self._total = 0

    def folder(self) -> Path:
        """Everything of a checkpoint that is read; its folder."""
        if "config.json" not in self.sizes:
            _fail(self.model, "no config.json; a model in transformers' layout is needed")
        # By the name of the revision, so that it is found without the hub, too.
        folder = self._file("config.json", self.model.revision).parent
        self._commit = folder.name
        found = weight_files(name for name in self.sizes if "/" not in name)
        assert found is not None
        naming, weights = found
        if naming.index in self.sizes:
            listed = (read_json(self._file(naming.index)) or {}).get("weight_map")
            names = listed.values() if isinstance(listed, dict) else ()
            weights = [name for name in sorted(self.sizes) if name in names]
        self._files([*filter(_is_wanted, self.sizes), *weights])
        return folder

    def adapter(self) -> Path:
        """Settings, weights and card of an adapter; its folder."""
        weights = [name for name in ADAPTER_WEIGHTS if name in self.sizes][:1]
        if not weights:
            wanted = ", ".join(ADAPTER_WEIGHTS)
            _fail(self.model, f"no weights of an adapter ({wanted}); choose another repository")
        # By the name of the revision, so that it is found without the hub, too.
        folder = self._file(ADAPTER, self.model.revision).parent
        self._commit = folder.name
        self._files([*(name for name in (CARD,) if name in self.sizes), *weights])
        return folder

    def gguf(self, names: Sequence[str]) -> Path:
        """A GGUF in all its parts; the path of the first."""
        if missing := [name for name in names if name not in self.sizes]:
            _fail(self.model, f"no {missing[0]} there")
        return self._files(names)[0]

    def _files(self, names: Sequence[str]) -> list[Path]:
        self._done = 0
        self._total = sum(self.sizes[name] for name in names)
        paths = []
        for name in names:
            before = self._done
            paths.append(self._file(name))
            # Cached files and those without a bar move nothing.
            self._done = before + self.sizes[name]
            self._moved(0)
        return paths

    def _file(self, name: str, revision: str | None = None) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self.model.repo,
                name,
                revision=revision or self._commit,
                tqdm_class=_bar(self._moved),
            )
        except Exception as error:
            refused(self.model, error)
        return Path(path)

    def _moved(self, count: int) -> None:
        self._done += count
        if self._total:
            title = f"fetching {self.model.display}"
            self._report(Step(title, min(self._done, self._total), self._total))


def _is_wanted(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and file.endswith(".jinja")
    return file == CARD or file.endswith(WANTED)


def _bar(moved: Callable[[int], None]) -> Any:
    """A progress bar for huggingface_hub that draws nothing and reports bytes."""

    class Bar:
        total = n = 0

        def __init__(self, *_arguments: Any, **options: Any) -> None:
            moved(int(options.get("initial") or 0))

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            moved(int(n or 0))

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_arguments, **_options: None  # descriptions, rates, redrawing

    return Bar


def _cached(model: HubModel, known_by: str) -> Path | None:
    """What an earlier call left in the cache."""
    from huggingface_hub import try_to_load_from_cache

    name = model.file or known_by
    path = try_to_load_from_cache(model.repo, name, revision=model.revision)
    if not isinstance(path, str):
        return None
    return Path(path) if model.file else Path(path).parent


def _fail(model: HubModel, what: str) -> NoReturn:
    raise HubError(f"{model.display}: {what}")


def refused(model: HubModel, error: Exception) -> NoReturn:
    """The reason in one line, with the remedy."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    match error:
        case HubError():
            raise error
        case errors.GatedRepoError():
            what = f"access must be granted on {hub}/{model.repo}, and HF_TOKEN must be that of"
            _fail(model, f"{what} an account that has it (hf auth login)")
        case errors.RepositoryNotFoundError():
            _fail(model, f"not on {hub}, or private: then set HF_TOKEN (hf auth login)")
        case errors.RevisionNotFoundError():
            _fail(model, f"no revision {model.revision!r} on {hub}")
        case errors.HFValidationError():
            raise ArgumentError(f"{model.display}: {_first_line(error)}") from None
        case errors.HfHubHTTPError():
            _fail(model, f"{hub} refuses: {_first_line(error)}")
        case OSError() if not isinstance(error, ConnectionError) and error.strerror:
            _fail(model, f"cannot be written into the cache: {error.strerror}")
        case _:
            kind = type(error).__name__
            _fail(model, f"{hub} cannot be reached ({kind}: {_first_line(error)}); try again later")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
