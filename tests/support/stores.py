"""Models in a store, and the files that these are."""

from gpukit.store import Store, change
from gpukit.store.blobs import digest_of
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Manifest

ORPHAN = f"sha256-{'0' * 64}"
PARTIAL = f"sha256-{'1' * 64}-partial"


def add(store: Store, name: str, *texts: str, **kinds: bytes) -> Manifest:
    """Put a model with these layers into the store."""
    with change(store) as changes:
        layers = [changes.add_bytes(text.encode(), LAYER_PREFIX + "license") for text in texts]
        layers += [changes.add_bytes(data, LAYER_PREFIX + kind) for kind, data in kinds.items()]
        config = changes.add_bytes(b'{"model_format":"gguf"}\n', CONFIG_TYPE)
        manifest = Manifest(config, tuple(layers))
        changes.publish(store.find(name), manifest)
    return manifest


def files(store: Store) -> set[str]:
    return {path.name for path in store.blobs.iterdir()}


def file_names(*texts: str) -> set[str]:
    return {digest_of(text.encode()).replace(":", "-") for text in texts}


CONFIG_FILE = file_names('{"model_format":"gguf"}\n')
