"""A model of the store, sent to a registry: its blobs, then its manifest, byte for byte."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpukit.errors import ArgumentError, DiskError, RegistryError, StoreError
from gpukit.events import Report, Status
from gpukit.remote import sent
from gpukit.remote.download import title
from gpukit.remote.registry import Registry, Reply
from gpukit.remote.tokens import reason
from gpukit.remote.upload import Outcome, Upload
from gpukit.remote.wire import Again
from gpukit.store import gojson
from gpukit.store.blobs import blob_path, check, digest_of
from gpukit.store.changes import Change, change
from gpukit.store.manifest import MANIFEST_TYPE, Layer, Manifest, decode
from gpukit.store.names import ModelName
from gpukit.store.store import Store


@dataclass(frozen=True)
class Pushed:
    """What went: the digest of the manifest, bytes of all blobs, those that were sent, and how
    many blobs were mounted from another model of the registry."""

    digest: str
    size: int
    moved: int
    mounted: int


def push(
    registry: Registry,
    store: Store,
    name: ModelName,
    report: Report,
    uploads: Path | None = None,
) -> Pushed:
    """Send the model `name` of `store` to the registry, under the registry's name.

    `uploads` is the folder of notes about unfinished uploads. `RegistryError` for what the registry
    refuses, `StoreError` for a model that is not there or damaged.
    """
    report(Status("retrieving manifest"))
    moved = mounted = 0
    with _claimed(store, name) as (data, manifest):
        for layer in {layer.digest: layer for layer in manifest.blobs}.values():
            folder, path = uploads or sent.default_folder(), blob_path(store.blobs, layer.digest)
            with sent.held(folder, registry.path, layer.digest) as note:
                upload = Upload(registry, layer, path, note, report)
                outcome = upload.run(_mounts(store, registry.name, layer))
            moved += upload.moved
            mounted += outcome is Outcome.MOUNTED
        report(Status("pushing manifest"))
        _put_manifest(registry, data)
    return Pushed(digest_of(data), manifest.size, moved, mounted)


@contextmanager
def _claimed(store: Store, name: ModelName) -> Iterator[tuple[bytes, Manifest]]:
    """The manifest of a model, whose blobs stay until the block ends, whoever removes or replaces
    the model meanwhile. Where nothing can be written (another user's store, a full disk) they are
    not held."""
    data = store.manifest_bytes(name)
    manifest = _pushable(data, name)
    with ExitStack() as held:
        changes = None
        with suppress(DiskError, StoreError):
            changes = held.enter_context(change(store))
        while True:
            try:
                for layer in manifest.blobs:
                    _claim(store, changes, layer, name)
                break
            except StoreError:
                if (now := store.manifest_bytes(name)) == data:
                    raise
                data, manifest = now, _pushable(now, name)  # replaced meanwhile
        yield data, manifest


def _claim(store: Store, changes: Change | None, layer: Layer, name: ModelName) -> None:
    if changes is not None:
        with suppress(DiskError):
            changes.keep(layer, name)
            return
    check(store.blobs, layer, name.display)


def _pushable(data: bytes, name: ModelName) -> Manifest:
    manifest = decode(data, f"model '{name.display}'")
    if manifest.config is None or not manifest.layers:
        raise StoreError(f"model '{name.display}': no weights in the store, nothing to push")
    return manifest


def _mounts(store: Store, target: ModelName, layer: Layer) -> list[str]:
    """Repositories of the same registry that may have the blob: the one that it was made from,
    then those of models here that have it, too."""
    found = []
    if layer.origin:
        with suppress(ArgumentError):  # of a GGUF taken as it is: a file's name
            found.append(ModelName.parse(layer.origin))
    found += _owners(store, target.host, layer.digest)
    paths = [f"{name.namespace}/{name.model}" for name in found if name.host == target.host]
    own = f"{target.namespace}/{target.model}"
    return [path for path in dict.fromkeys(paths) if path != own]


def _owners(store: Store, host: str, digest: str) -> Sequence[ModelName]:
    found = []
    for name in store.names():
        if name.host != host:
            continue
        try:
            manifest = store.manifest(name)
        except StoreError:
            continue
        if any(layer.digest == digest for layer in manifest.blobs):
            found.append(name)
    return found


def _put_manifest(registry: Registry, data: bytes) -> None:
    """Publish the manifest; the id that others see is the one here."""
    kind = gojson.decode(data).get("mediaType") or MANIFEST_TYPE
    url = f"{registry.path}/manifests/{registry.name.tag}"
    headers = {"Content-Type": str(kind), "Content-Length": str(len(data))}

    def attempt() -> Reply:
        reply = registry.call("pushing manifest", "PUT", url, headers, data)
        if reply.status in (400, 404) and b"BLOB_UNKNOWN" in reply.body:
            # While another push puts the same blob in its place, some registries miss it.
            raise Again(f"{reply.status}: {reason(reply.body)}")
        return reply

    reply = registry.wire.patiently(f"{registry.name.host}: pushing manifest", attempt)
    if reply.status not in (200, 201, 202, 204):
        registry.refuse("pushing manifest", reply)
    told, actual = reply.headers.get("Docker-Content-Digest", ""), digest_of(data)
    if told.startswith("sha256:") and told != actual:
        raise RegistryError(
            f"{registry.name.host}: the manifest of {title(actual)} was kept as "
            f"{title(told[:80])}: push again"
        )
