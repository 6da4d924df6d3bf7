"""Changing a store: blobs first, the manifest last, each by rename; killed at any moment it is
as it was, and the next command clears what was left (see journal.py)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from gpukit.errors import ArgumentError, StoreError
from gpukit.formats.atomic import need_room, sync_folder
from gpukit.store import blobs
from gpukit.store.journal import Entry, Job, Scratch, claims, discard, discard_files
from gpukit.store.manifest import Layer, Manifest, mentioned
from gpukit.store.models import StoredModel
from gpukit.store.names import ModelName
from gpukit.store.store import Store


@contextmanager
def change(store: Store) -> Iterator["Change"]:
    """A change to the store that is finished or, on an error, undone when the block ends."""
    with blobs.disk_errors(store.root):
        for folder in (store.manifests, store.blobs):
            _make(folder)
        scratch = Scratch(store.scratch)
        with scratch.lock():
            settle_dead(store, scratch)
            job = scratch.begin()
    try:
        yield Change(store, scratch, job)
    finally:
        with blobs.disk_errors(store.root), scratch.lock():
            job.close()
            _settle(store, scratch, job.folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreError(
            f"{folder}: a file, or a link that leads nowhere: put a folder in its place"
        ) from None


def tidy(store: Store) -> None:
    """Clear what killed commands left. Does nothing, quickly, where nothing was left, and where
    this user may not write: reading a store needs no permission to change it."""
    scratch = Scratch(store.scratch)
    if not scratch.folders() or not os.access(scratch.path, os.W_OK):
        return
    try:
        with scratch.lock():
            settle_dead(store, scratch)
    except (OSError, StoreError):
        return


class Change:
    """What a command may do to a store inside `with change(store)`."""

    def __init__(self, store: Store, scratch: Scratch, job: Job) -> None:
        self._store = store
        self._scratch = scratch
        self._job = job
        self.added: set[str] = set()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with blobs.disk_errors(self._store.root), self._scratch.lock():
            yield

    def temporary(self) -> Path:
        """The path of a new file that vanishes with this change unless `add_file` takes it."""
        return self._job.temporary()

    def need_room(self, size: int) -> None:
        """DiskError, with both numbers, where the store's disk has not `size` bytes free."""
        need_room(self._store.blobs, size)

    def add_file(
        self, path: Path, digest: str, size: int, media_type: str, origin: str = ""
    ) -> Layer:
        """Make the synced file `path` (from `temporary`) the blob of `digest`; its layer.

        A blob that is there already is used, and touched so that Ollama does not prune it; one of
        another size, which some crash has damaged, is replaced.
        """
        layer = Layer(media_type, digest, size, origin)
        target = blobs.blob_path(self._store.blobs, digest)
        with self._locked():
            if target.is_file() and target.stat().st_size == size:
                if digest not in self.added:
                    self._job.note(Entry.USES, digest)
                os.utime(target)
                path.unlink()
                return layer
            self._job.note(Entry.OWNS, digest)
            if path.stat().st_nlink == 1:  # else it is a file of the user's, too
                path.chmod(0o644)
            path.rename(target)
            sync_folder(self._store.blobs)
        self.added.add(digest)
        return layer

    def add_bytes(self, data: bytes, media_type: str) -> Layer:
        """Make `data` a blob; its layer."""
        path = self.temporary()
        with blobs.disk_errors(self._store.root):
            blobs.write_new(path, data)
        return self.add_file(path, blobs.digest_of(data), len(data), media_type)

    def keep(self, layer: Layer, owner: ModelName) -> Path:
        """Claim a blob that is in the store, so that nobody removes it while we work; its path."""
        with self._locked():
            path = blobs.check(self._store.blobs, layer, owner.display)
            self._job.note(Entry.USES, layer.digest)
            if os.access(path, os.W_OK):
                os.utime(path)
        return path

    def publish(self, name: ModelName, manifest: Manifest) -> StoredModel:
        """Write the manifest of `name` in the place of any that is there; the model as it is now,
        before anybody removes it again.

        Blobs that only the old one mentions go when the change ends, unless $OLLAMA_NOPRUNE.
        """
        return self.publish_bytes(name, manifest.encode())

    def publish_bytes(self, name: ModelName, data: bytes) -> StoredModel:
        """The same with the bytes of a manifest, as another store has written them."""
        with self._locked():
            self._publish(name, data)
            return self._store.describe(name)

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Give the manifest of `source`, byte for byte, to `destination` too."""
        with self._locked():
            self._publish(destination, self._store.manifest_bytes(source))

    def _publish(self, name: ModelName, data: bytes) -> None:
        target = self._target(name)
        if os.environ.get("OLLAMA_NOPRUNE", "").strip(" \"'").lower() in ("", "0", "f", "false"):
            self._own(name)
        self._job.note(Entry.NAME, str(name.path))
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = _draft(self._store, self._job.folder)
        blobs.write_new(draft, data)
        draft.rename(target)
        for parent in list(target.parents)[: len(name.path.parts)]:
            sync_folder(parent)

    def withdraw(self, name: ModelName) -> None:
        """Remove the manifest of `name`; its blobs that no other mentions go when the change ends.

        StoreError where there is none. A corrupt manifest goes too, with the blobs it still names.
        """
        with self._locked():
            self._store.manifest_bytes(name)
            self._own(name)
            target = self._target(name)
            self._job.note(Entry.NAME, str(name.path))
            target.unlink()

    def _target(self, name: ModelName) -> Path:
        """The manifest of `name`, which is to be changed; StoreError where links lead elsewhere."""
        target = self._store.manifest_path(name)
        for folder in list(target.parents)[: len(name.path.parts) - 1]:
            if folder.is_symlink():
                raise StoreError(
                    f"{folder}: a link, which leads out of the store ({folder.resolve()}): nothing "
                    "is changed there; put a folder in its place"
                )
        return target

    def _own(self, name: ModelName) -> None:
        try:
            old = self._store.manifest_bytes(name)
        except StoreError:
            return
        for digest in sorted(mentioned(old)):
            self._job.note(Entry.OWNS, digest)


def copy(store: Store, source: str, destination: str) -> tuple[ModelName, ModelName]:
    """Give the model `source` a second name; both names as they are now.

    The manifest is copied byte for byte; StoreError where `source` is not in the store,
    ArgumentError where both names are one.
    """
    old, new = store.existing(source), store.find(destination)
    if old == new:
        raise ArgumentError(
            f"'{source}' and '{destination}' are one model, {old.display}: names that differ in "
            "case only are one"
        )
    with change(store) as changes:
        changes.copy(old, new)
    return old, new


def remove(store: Store, text: str) -> ModelName:
    """Remove a model and the blobs that no other model mentions; its name.

    StoreError where it is not in the store.
    """
    name = store.existing(text)
    with change(store) as changes:
        changes.withdraw(name)
    return name


def settle_dead(store: Store, scratch: Scratch) -> None:
    """Clear up after all jobs that were killed. The caller holds the lock."""
    for folder in scratch.dead():
        _settle(store, scratch, folder)


def _settle(store: Store, scratch: Scratch, folder: Path) -> None:
    """Clear up after a job that has ended. The caller holds the lock."""
    discard_files(folder)
    found = claims(folder)
    _draft(store, folder).unlink(missing_ok=True)
    for path in found.names:
        _remove_empty(store.manifests, PurePosixPath(path))
    try:
        unmentioned = found.owns - store.mentioned() if found.owns else frozenset()
    except OSError:
        return  # a manifest of somebody else's, or none: what it mentions is not known, all stay
    claimed = unmentioned & scratch.living_claims() if unmentioned else frozenset()
    for digest in unmentioned - claimed:
        blobs.blob_path(store.blobs, digest).unlink(missing_ok=True)
    if not claimed:
        discard(folder)


def _draft(store: Store, folder: Path) -> Path:
    """Where a job writes a manifest before it is renamed: on the same disk, and not so deep that
    Ollama takes it for a model."""
    return store.manifests / f".gpukit-{folder.name}"


def _remove_empty(manifests: Path, path: PurePosixPath) -> None:
    for parent in list(path.parents)[:-1]:
        try:
            (manifests / parent).rmdir()
        except OSError:
            return  # not empty, or gone already
