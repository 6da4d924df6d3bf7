"""Pulling from a registry that does what it should, and from one that does not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.at_once import at_once
from support.registry import Fault, Server
from support.stores import add, files

from gpukit import (
    ArgumentError,
    DiskError,
    GpukitError,
    NotFoundError,
    RegistryError,
    Store,
    StoreError,
)
from gpukit.events import Event, Status, Step, Warned
from gpukit.store.blobs import digest_of
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX

WEIGHTS = bytes(range(256)) * 1400 + b"end"  # four parts of a hundred thousand bytes
CONFIG = b'{"model_format":"gguf"}\n'


def publish(server: Server, weights: bytes = WEIGHTS, **changes: Any) -> str:
    """A model at the registry; its name."""
    layers = [layer("model", weights, server.add(weights)), layer("template", b"{{ .Prompt }}",
              server.add(b"{{ .Prompt }}"))]  # fmt: skip
    config = {**layer("", CONFIG, server.add(CONFIG)), "mediaType": CONFIG_TYPE}
    document = {"schemaVersion": 2, "config": config, "layers": layers, **changes}
    server.manifests["me/tiny:q4"] = json.dumps(document, indent=2).encode()
    return f"{server.host}/me/tiny:q4"


def layer(kind: str, data: bytes, digest: str) -> dict[str, Any]:
    return {"mediaType": LAYER_PREFIX + kind, "digest": digest, "size": len(data)}


def blob(store: Store, data: bytes = WEIGHTS) -> Path:
    return store.blobs / digest_of(data).replace(":", "-")


def untouched(store: Store) -> bool:
    """Whether the store holds neither a model nor a blob."""
    return not store.names() and not [f for f in files(store) if "partial" not in f]


def test_a_model_arrives_byte_for_byte(server: Server, store: Store) -> None:
    name = publish(server)
    events: list[Event] = []
    pulled = store.pull(name, insecure=True, report=events.append)
    assert blob(store).read_bytes() == WEIGHTS
    assert store.manifest_bytes(store.existing(name)) == server.manifests["me/tiny:q4"]
    assert pulled.digest == digest_of(server.manifests["me/tiny:q4"])
    assert (pulled.size, pulled.moved) == (len(WEIGHTS) + 13 + len(CONFIG),) * 2
    assert not [name for name in files(store) if "partial" in name]
    assert [e.text for e in events if isinstance(e, Status)] == [
        "pulling manifest", "verifying sha256 digest", "writing manifest",
    ]  # fmt: skip
    title = f"pulling {digest_of(WEIGHTS)[7:19]}"
    assert Step(title, len(WEIGHTS), len(WEIGHTS)) in events
    assert store.pull(name, insecure=True).moved == 0


def test_what_is_there_is_not_fetched(server: Server, store: Store) -> None:
    add(store, "mine", model=WEIGHTS)
    pulled = store.pull(publish(server), insecure=True)
    assert pulled.moved == 13  # the template
    assert server.count("GET", digest_of(WEIGHTS)) == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("storage", [True, False])
def test_a_pull_that_was_cut_goes_on(
    server: Server, store: Store, ranges: bool, storage: bool
) -> None:
    """At every stage: a failed pull leaves nothing that is seen, and the next one goes on."""
    server.ranges, server.storage = ranges, storage
    name = publish(server)
    kind = "GET storage" if storage else "GET blobs"
    tries = 40
    server.faults[kind] = [Fault(cut=150_000)] + [Fault(status=503)] * tries
    for _ in range(4):
        with pytest.raises(RegistryError, match="run the command again to go on"):
            store.pull(name, insecure=True)
        assert not blob(store).exists()
        assert not store.names()
        server.faults[kind] = [Fault(cut=90_000)] * 2 + [Fault(status=503)] * tries
    server.faults[kind].clear()
    assert store.pull(name, insecure=True).moved < len(WEIGHTS) - 50_000
    assert blob(store).read_bytes() == WEIGHTS


def test_what_ollama_left_is_gone_on_with(server: Server, store: Store) -> None:
    name = publish(server)
    store.blobs.mkdir(parents=True)
    half = 200_000
    path = store.blobs / (blob(store).name + "-partial")
    path.write_bytes(WEIGHTS[:half] + bytes(len(WEIGHTS) - half))
    whole = len(WEIGHTS)
    parts = [(0, 0, half, half), (1, half, whole - half, 0)]
    for n, offset, size, come in parts:
        text = f'{{"N":{n},"Offset":{offset},"Size":{size},"Completed":{come}}}\n'
        path.with_name(f"{path.name}-{n}").write_text(text)
    pulled = store.pull(name, insecure=True)
    assert pulled.moved == whole - half + 13 + len(CONFIG)
    assert blob(store).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"N":0,"Offset":0,"Size":9,"Completed":99}', '{"N":0,"Offset":5,"Size":9}',
     '{"N":0,"Offset":0,"Size":358403,"Completed":true}'],
)  # fmt: skip
def test_rubbish_about_parts_is_begun_anew(server: Server, store: Store, text: str) -> None:
    name = publish(server)
    store.blobs.mkdir(parents=True)
    path = store.blobs / (blob(store).name + "-partial")
    path.write_bytes(bytes(len(WEIGHTS)))
    path.with_name(path.name + "-0").write_text(text)
    store.pull(name, insecure=True)
    assert blob(store).read_bytes() == WEIGHTS


def test_a_wrong_digest_is_refused(server: Server, store: Store) -> None:
    name = publish(server)
    server.blobs[digest_of(WEIGHTS)] = b"x" * len(WEIGHTS)
    with pytest.raises(RegistryError, match="digest mismatch, the file must be downloaded again"):
        store.pull(name, insecure=True)
    assert untouched(store)
    assert not [name for name in files(store) if name.startswith(blob(store).name)]
    server.add(WEIGHTS)
    store.pull(name, insecure=True)
    assert blob(store).read_bytes() == WEIGHTS


def test_a_blob_of_another_size_is_refused(server: Server, store: Store) -> None:
    name = publish(server, b"short")
    server.blobs[digest_of(b"short")] = b"longer than that"
    with pytest.raises(RegistryError, match=r"has 16 bytes, the manifest says 5"):
        store.pull(name, insecure=True)
    assert untouched(store)


def test_a_blob_that_the_registry_has_not(server: Server, store: Store) -> None:
    name = publish(server)
    server.owners[digest_of(WEIGHTS)].clear()
    with pytest.raises(RegistryError, match="404: the manifest names it, the registry has it not"):
        store.pull(name, insecure=True)
    assert untouched(store)


def test_storage_gets_no_credentials(server: Server, store: Store) -> None:
    server.auth, server.storage = "token", True
    store.pull(publish(server), insecure=True)
    elsewhere = [each for each in server.asked if each.host == "localhost"]
    assert elsewhere
    assert not any(each.authorization for each in elsewhere)
    assert any(each.authorization for each in server.asked if each.host == "127.0.0.1")


def test_a_busy_registry_is_asked_again(server: Server, store: Store) -> None:
    server.faults["GET manifests"] = [Fault(status=429), Fault(status=503), Fault(stall=True)]
    store.pull(publish(server), insecure=True)
    assert server.count("GET", "manifests") == 4


def test_a_registry_that_stays_silent(server: Server, store: Store) -> None:
    server.faults["GET manifests"] = [Fault(stall=True)] * 9
    with pytest.raises(RegistryError, match=r"no answer for 0.5 s \(4 tries\)"):
        store.pull(publish(server), insecure=True)


def test_no_registry_at_all(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"manifest: no connection to 127.0.0.1:1: .*refused"):
        store.pull("127.0.0.1:1/me/tiny", insecure=True)
    assert not store.root.exists()


def test_two_pulls_at_once_share_the_work(server: Server, store: Store) -> None:
    name = publish(server)
    at_once(*[lambda: Store(store.root).pull(name, insecure=True)] * 3)
    assert blob(store).read_bytes() == WEIGHTS
    assert not [name for name in files(store) if "partial" in name]


BAD_LAYERS: list[tuple[Any, str]] = [
    ([], "names no layers"),
    ([{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 1,
       "digest": digest_of(b"x")}], "which no model has"),
    ([layer("model", b"x", "sha256:../../../../etc/passwd")], "no sha256"),
    ([{**layer("model", b"x", digest_of(b"x")), "size": -1}], "has the size"),
    ([{**layer("model", b"x", digest_of(b"x")), "size": 1 << 80}], "has the size"),
    ([layer("model", b"x", digest_of(b"x")), layer("license", b"xy", digest_of(b"x"))],
     "has 1 bytes and 2"),
    ("layers", "is no list"),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "what"), BAD_LAYERS)
def test_manifests_that_cannot_be_right(
    server: Server, store: Store, layers: Any, what: str
) -> None:
    name = publish(server, layers=layers)
    with pytest.raises(RegistryError, match=what) as caught:
        store.pull(name, insecure=True)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()


@pytest.mark.parametrize("data", [b"", b"<html>", b"[1]", b"\xff" * 99, b"[" * 9999, b"{}"])
def test_rubbish_for_a_manifest(server: Server, store: Store, data: bytes) -> None:
    name = publish(server)
    server.manifests["me/tiny:q4"] = data
    with pytest.raises(RegistryError):
        store.pull(name, insecure=True)
    assert not store.root.exists()


def test_a_list_of_images(server: Server, store: Store) -> None:
    name = publish(server)
    server.manifests["me/tiny:q4"] = b'{"schemaVersion":2,"manifests":[]}'
    with pytest.raises(RegistryError, match="several platforms"):
        store.pull(name, insecure=True)


def test_an_absurd_size_is_refused_before_anything_is_written(server: Server, store: Store) -> None:
    huge = {**layer("model", b"x", digest_of(b"x")), "size": 1 << 60}
    name = publish(server, layers=[huge])
    with pytest.raises(DiskError, match=r"11529215046068\d+ bytes are needed, \d+ are free"):
        store.pull(name, insecure=True)
    assert not files(store)


def test_a_model_that_is_not_there(server: Server, store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"not found at 127\.0\.0\.1"):
        store.pull(f"{server.host}/me/none", insecure=True)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "h/../m", "host/ns/..", "host/ns/.hidden", "a/b/c/d", "ftp://h/n/m",
     "", "m:", "host/n s/m", "host/ns/m:../../x", "host/ns/m%2f..", "/m"],
)  # fmt: skip
def test_names_that_are_none(store: Store, name: str) -> None:
    with pytest.raises(ArgumentError):
        store.pull(name, insecure=True)
    assert not store.root.exists()


def test_http_is_asked_for(server: Server, store: Store) -> None:
    with pytest.raises(ArgumentError, match="insecure protocol http"):
        store.pull(f"http://{publish(server)}")
    with pytest.raises(RegistryError, match="no https that can be trusted"):
        store.pull(publish(server))
    store.pull(f"http://{publish(server)}", insecure=True)


def test_a_redirect_to_no_http(server: Server, store: Store) -> None:
    name = publish(server)
    with pytest.raises(GpukitError, match="which is not https://"):
        _redirected(server, store, name, "file:///etc/passwd")
    for nowhere in ("http://[::1", "http://a:99999999/"):
        with pytest.raises(RegistryError, match=r"sends us to 'http.*', which is no address"):
            _redirected(server, store, name, nowhere)
    with pytest.raises(RegistryError, match=r"no connection to 127.0.0.1:1: "):
        _redirected(server, store, name, "http://127.0.0.1:1/")


def test_redirects_in_a_circle(server: Server, store: Store) -> None:
    name = publish(server)
    with pytest.raises(RegistryError, match="over 10 redirects"):
        _redirected(server, store, name, "")


def _redirected(server: Server, store: Store, name: str, to: str) -> None:
    """Pull a model whose blobs the registry redirects to `to`, or to themselves."""
    from support import registry

    def blobs(self: Any, it: Server, repository: str, digest: str) -> None:
        self._send(302, b"", {"Location": to or self.path})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry._Handler, "_blobs", blobs)
        store.pull(name, insecure=True)


def test_a_full_disk(server: Server, small_disk: Path) -> None:
    name = publish(server, b"x" * 400_000)
    with pytest.raises(DiskError, match=r"400037 bytes are needed, \d+ are free"):
        Store(small_disk).pull(name, insecure=True)


def test_a_link_out_of_the_store_is_not_followed(
    server: Server, store: Store, tmp_path: Path
) -> None:
    name = publish(server)
    store.blobs.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    partial = store.blobs / (blob(store).name + "-partial")
    for make in (lambda: partial.symlink_to(outside), partial.mkdir, lambda: os.mkfifo(partial)):
        make()
        with pytest.raises(StoreError, match=rf"{partial}: no file, as .* remove it"):
            store.pull(name, insecure=True)
        if partial.is_dir():
            partial.rmdir()
        else:
            partial.unlink()
    assert outside.read_bytes() == b"mine"


def test_a_link_that_leads_nowhere(server: Server, store: Store) -> None:
    name = publish(server)
    store.root.mkdir()
    store.blobs.symlink_to("nowhere")
    with pytest.raises(StoreError, match=f"{store.blobs}: a file, or a link that leads nowhere"):
        store.pull(name, insecure=True)


def test_a_disk_that_fills_meanwhile(
    server: Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the room that was there when the pull began."""
    monkeypatch.setattr("gpukit.store.changes.need_room", lambda path, size: None)
    name = publish(server, b"x" * 4_000_000)
    store = Store(small_disk / "models")
    with pytest.raises(DiskError, match=r"No space left.* bytes are free\); make room or"):
        store.pull(name, insecure=True)
    assert untouched(store)


def test_a_layer_of_an_unknown_kind_is_kept(server: Server, store: Store) -> None:
    data = b"from the future"
    future = layer("hologram", data, server.add(data))
    name = publish(server, layers=[layer("model", WEIGHTS, server.add(WEIGHTS)), future])
    events: list[Event] = []
    store.pull(name, insecure=True, report=events.append)
    assert Warned("layer 1 is of the kind 'hologram', which is not known") in events
    assert blob(store, data).read_bytes() == data
    assert store.resolve(name).gguf == blob(store)


def test_a_manifest_that_a_link_leads_out_of_the_store(
    server: Server, store: Store, tmp_path: Path
) -> None:
    add(store, f"{server.host}/me/tiny:q4", "old")
    (tmp_path / "outside").mkdir()
    folder = store.manifests / server.host
    folder.rename(tmp_path / "outside" / "manifests")
    folder.symlink_to(tmp_path / "outside" / "manifests")
    name = publish(server)
    before = store.manifest_bytes(store.existing(name))
    for action in (
        lambda: store.pull(name, insecure=True),
        lambda: store.remove(name),
        lambda: store.copy(name, f"{server.host}/me/tiny:q5"),
    ):
        with pytest.raises(StoreError, match="a link, which leads out of the store"):
            action()
    assert [path.name for path in (tmp_path / "outside/manifests/me/tiny").iterdir()] == ["q4"]
    assert store.manifest_bytes(store.existing(name)) == before
