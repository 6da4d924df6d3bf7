"""A model of a registry, brought into the store: blobs first, each checked, the manifest last."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from gpukit.errors import NotFoundError, RegistryError, StoreError
from gpukit.events import Report, Status, Warned
from gpukit.formats.atomic import disk_errors
from gpukit.remote.download import Download, title
from gpukit.remote.partial import Partial, on_disk
from gpukit.remote.registry import Registry
from gpukit.store import blobs, gojson
from gpukit.store.changes import Change, change
from gpukit.store.manifest import LAYER_PREFIX, MANIFEST_TYPE, Layer, Manifest, decode
from gpukit.store.names import ModelName
from gpukit.store.store import MOST_OF_A_MANIFEST, Store

OCI_TYPE = "application/vnd.oci.image.manifest.v1+json"
KINDS = (
    "model", "projector", "adapter", "template", "prompt", "system", "params", "messages",
    "license", "draft", "tensor", "json", "embed",
)  # fmt: skip


@dataclass(frozen=True)
class Pulled:
    """What came: the digest of the manifest, bytes of all blobs, and of those what was moved."""

    digest: str
    size: int
    moved: int


def pull(registry: Registry, store: Store, name: ModelName, report: Report) -> Pulled:
    """Bring the registry's model into `store` as `name`.

    `NotFoundError` where the registry has none, `RegistryError` for what cannot be right; the
    store then is as it was, apart from unfinished files that the next pull goes on with.
    """
    report(Status("pulling manifest"))
    data = fetch_manifest(registry)
    where = f"{registry.name.host}: model '{registry.name.display}'"
    manifest = checked_manifest(data, where, report)
    with blobs.disk_errors(store.root), change(store) as changes:
        moved = _bring(registry, store, changes, manifest, report)
        report(Status("writing manifest"))
        changes.publish_bytes(name, data)
    return Pulled(blobs.digest_of(data), manifest.size, moved)


def fetch_manifest(registry: Registry) -> bytes:
    """The bytes of the manifest of the registry's model."""
    name = registry.name
    url = f"{registry.path}/manifests/{name.tag}"
    accept = {"Accept": f"{MANIFEST_TYPE}, {OCI_TYPE}"}
    reply = registry.call("pulling manifest", "GET", url, accept, most=MOST_OF_A_MANIFEST)
    if reply.status == 404:
        raise NotFoundError(f"model '{name.display}' not found at {name.host}")
    if reply.status != 200:
        registry.refuse("pulling manifest", reply)
    told = reply.headers.get("Docker-Content-Digest", "")
    actual = blobs.digest_of(reply.body)
    if told.startswith("sha256:") and told != actual:
        raise RegistryError(
            f"{name.host}: digest mismatch of the manifest: want {told[:80]}, got {actual}"
        )
    return reply.body


def checked_manifest(data: bytes, where: str, report: Report) -> Manifest:
    """The manifest, if it is that of a model; else `RegistryError`."""
    try:
        manifest = decode(data, where)
    except StoreError as error:
        raise RegistryError(str(error).partition(";")[0]) from None
    if isinstance(gojson.decode(data).get("manifests"), list):
        raise RegistryError(f"{where}: a list of images for several platforms, no model")
    if not manifest.layers:
        raise RegistryError(f"{where}: the manifest names no layers")
    sizes: dict[str, int] = {}
    for number, layer in enumerate(manifest.layers):
        if not layer.media_type.startswith(LAYER_PREFIX):
            raise RegistryError(
                f"{where}: layer {number} is {layer.media_type[:80]!r}, which no model has"
            )
        if layer.kind not in KINDS:
            report(Warned(f"layer {number} is of the kind {layer.kind[:40]!r}, which is not known"))
    for layer in manifest.blobs:
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise RegistryError(
                f"{where}: {layer.digest} has {sizes[layer.digest]} bytes and {layer.size}"
            )
    if sum(sizes.values()) >= 2**63:
        raise RegistryError(f"{where}: layers of {sum(sizes.values())} bytes")
    return manifest


def _bring(
    registry: Registry, store: Store, changes: Change, manifest: Manifest, report: Report
) -> int:
    """Make every blob of the manifest one of the store; bytes that came from the registry."""
    # In the order of their digests: two pulls never wait for each other.
    wanted = sorted({layer.digest: layer for layer in manifest.blobs}.items())
    missing = [layer for _, layer in wanted if not _kept(changes, layer, registry.name)]
    changes.need_room(sum(max(0, each.size - on_disk(store.blobs, each)) for each in missing))
    moved = 0
    with ExitStack() as held:
        unfinished = []
        for layer in missing:
            partial = held.enter_context(_held(store, layer, report))
            if partial.arrived and _kept(changes, layer, registry.name):
                partial.remove()
                continue
            download = Download(registry, partial, report)
            download.run()
            moved += download.moved
            unfinished.append(partial)
        if unfinished:
            report(Status("verifying sha256 digest"))
        for partial in unfinished:
            layer = partial.layer
            changes.add_file(partial.path, layer.digest, layer.size, layer.media_type)
            partial.settle()
    return moved


def _kept(changes: Change, layer: Layer, owner: ModelName) -> bool:
    """Whether the store has the blob; then nobody removes it before this pull has ended."""
    with suppress(StoreError):
        changes.keep(layer, owner)
        return True
    return False


@contextmanager
def _held(store: Store, layer: Layer, report: Report) -> Iterator[Partial]:
    def waiting() -> None:
        report(Status(f"waiting for another pull of {title(layer.digest)}"))

    with disk_errors(store.blobs):
        partial = Partial(store.blobs, layer, waiting)
    try:
        yield partial
    finally:
        partial.close()
