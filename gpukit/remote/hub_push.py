"""Weights, sent to the Hugging Face hub by huggingface_hub, with a card where there is none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.errors import HubError
from gpukit.events import Report, Status
from gpukit.remote.hub import CARD, HubModel, refused

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

# What the hub answers who may not write.
_DENIED = (401, 403)


@dataclass(frozen=True)
class HubPushed:
    """The commit that came of it, and where to look at it."""

    commit: str
    url: str


def push_files(
    target: HubModel,
    files: Mapping[str, Path],
    card: Callable[[], str],
    *,
    private: bool,
    report: Report,
) -> HubPushed:
    """Commit `files`, by their names there, to the repository of `target`, which is made where
    there is none (`private` or not); `card` gives its README.md where it has none.

    Files that the hub has already are not sent. `HubError` where it refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    report(Status(f"pushing to {target.display}"))
    try:
        with _without_bars():
            made = _commit(api, target, files, card, private, report)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in _DENIED:
            raise HubError(
                f"{target.display}: {constants.ENDPOINT} does not let this account write there "
                f"({error.response.status_code}): set HF_TOKEN to a token that may (hf auth login)"
            ) from None
        refused(target, error)
    except Exception as error:  # of whatever library the package talks HTTP with
        refused(target, error)
    return HubPushed(made.oid, f"{constants.ENDPOINT}/{target.repo}")


def _commit(
    api: "HfApi",
    target: HubModel,
    files: Mapping[str, Path],
    card: Callable[[], str],
    private: bool,
    report: Report,
) -> "CommitInfo":
    from huggingface_hub import CommitOperationAdd

    api.create_repo(target.repo, private=private, exist_ok=True)
    adding = [CommitOperationAdd(name, path) for name, path in files.items()]
    if CARD not in files and not api.file_exists(target.repo, CARD, revision=target.revision):
        adding.append(CommitOperationAdd(CARD, card().encode()))
    for name in files:
        report(Status(f"sending {name}"))
    message = f"Upload {', '.join(files)} with gpukit"[:200]
    return api.create_commit(target.repo, adding, commit_message=message, revision=target.revision)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The package draws nothing: what a `report` hears is enough."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
