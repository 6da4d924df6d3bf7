"""Models sent to a registry and fetched from one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpukit.events import Report, ignore
from gpukit.store.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName
from gpukit.store.store import Store

# Where people look at models of Ollama's registry.
SITE = "https://ollama.com"


@dataclass(frozen=True)
class Transfer:
    """What was pushed or pulled: the name there, the digest of the manifest (or the commit of a
    hub), bytes of the whole model and those that were moved, blobs mounted from another model of
    the registry, and where to look at it, if anywhere."""

    name: str
    digest: str
    size: int
    moved: int
    mounted: int = 0
    url: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields; the size in bytes."""
        return {
            "name": self.name,
            "digest": self.digest,
            "size": self.size,
            "moved": self.moved,
            "mounted": self.mounted,
            "url": self.url,
        }


def pull(store: Store, text: str, *, insecure: bool = False, report: Report = ignore) -> Transfer:
    """Bring the model that `text` names from its registry into the store."""
    # The client takes a quarter of a second to import.
    from gpukit.remote.pull import pull as fetch
    from gpukit.remote.registry import Registry, scheme_of

    asked, scheme = ModelName.parse(text), scheme_of(text)
    with Registry(asked, scheme=scheme, insecure=insecure) as registry:
        pulled = fetch(registry, store, store.find(text), report)
    return Transfer(asked.display, pulled.digest, pulled.size, pulled.moved)


def push(
    store: Store,
    source: str | Path,
    to: str | None = None,
    *,
    insecure: bool = False,
    private: bool = False,
    report: Report = ignore,
) -> Transfer:
    """Send a model to its registry, or to the one that `to` names; `hf.co/org/name` is the Hugging
    Face hub, which takes a path of a .gguf file, too."""
    from gpukit.remote.hub import is_id

    if is_id(to or str(source)):
        return _push_to_hub(store, source, to, private=private, report=report)
    from gpukit.remote.push import push as send
    from gpukit.remote.registry import Registry, scheme_of

    name = store.existing(str(source))
    text = to or str(source)
    target = ModelName.parse(to) if to else name
    with Registry(target, scheme=scheme_of(text), insecure=insecure) as registry:
        pushed = send(registry, store, name, report)
    return Transfer(
        target.display, pushed.digest, pushed.size, pushed.moved, pushed.mounted, _page(target)
    )


def _push_to_hub(
    store: Store, source: str | Path, to: str | None, *, private: bool, report: Report
) -> Transfer:
    from gpukit.recipes.share_hub import push_to_hub

    target, made, size = push_to_hub(store, source, to, private=private, report=report)
    return Transfer(target.display, made.commit, size, size, url=made.url)


def _page(name: ModelName) -> str:
    """Where to look at a model of Ollama's registry; "" for another."""
    if name.host != DEFAULT_HOST:
        return ""
    path = name.model if name.namespace == DEFAULT_NAMESPACE else f"{name.namespace}/{name.model}"
    return f"{SITE}/{path}" + ("" if name.tag == DEFAULT_TAG else f":{name.tag}")
