"""Pushing to a registry that does what it should, and to one that does not."""

import hashlib
import json
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support import docker_registry
from support.at_once import at_once
from support.registry import Fault, Server
from support.stores import add

from gpukit import NotFoundError, RegistryError, Store, StoreError
from gpukit.events import Event, Status, Step
from gpukit.store.blobs import digest_of

WEIGHTS = bytes(range(256)) * 1400 + b"end"  # four parts of a hundred thousand bytes
DIGEST = digest_of(WEIGHTS)


def published(server: Server, store: Store) -> None:
    """The registry has the model, as it is here."""
    name = store.existing(f"{server.host}/me/tiny:q4")
    assert server.manifests["me/tiny:q4"] == store.manifest_bytes(name)
    for layer in store.manifest(name).blobs:
        path = store.blobs / layer.digest.replace(":", "-")
        assert server.blobs[layer.digest] == path.read_bytes()


@pytest.fixture
def name(server: Server, store: Store) -> str:
    name = f"{server.host}/me/tiny:q4"
    add(store, name, model=WEIGHTS, template=b"{{ .Prompt }}")
    return name


@pytest.mark.parametrize(("storage", "joins"), [(False, False), (False, True), (True, True)])
def test_a_model_is_sent_in_parts(
    server: Server, store: Store, name: str, storage: bool, joins: bool
) -> None:
    server.storage, server.joins = storage, joins
    events: list[Event] = []
    pushed = store.push(name, insecure=True, report=events.append)
    published(server, store)
    assert pushed.moved == pushed.size == len(WEIGHTS) + 13 + 24
    assert pushed.digest == digest_of(server.manifests["me/tiny:q4"])
    assert server.count("PATCH", "uploads") == 4 + 1 + 1
    assert [e.text for e in events if isinstance(e, Status)] == [
        "retrieving manifest", "pushing manifest",
    ]  # fmt: skip
    assert Step(f"pushing {DIGEST[7:19]}", len(WEIGHTS), len(WEIGHTS)) in events
    parts = [WEIGHTS[at : at + 100_000] for at in range(0, len(WEIGHTS), 100_000)]
    joined = b"".join(hashlib.md5(part).digest() for part in parts)
    # Others go by the sha256 alone, and md5 would take as long as all the rest.
    assert (f"{hashlib.md5(joined).hexdigest()}-4" in server.etags) == joins
    assert len(server.etags) == 3 * joins
    assert server.wasted == 0
    if storage:
        sent = [each for each in server.asked if each.host == "localhost"]
        assert sent
        assert not any(each.authorization for each in sent)
    assert store.push(name, insecure=True).moved == 0


def test_what_another_model_there_has_is_mounted(server: Server, store: Store, name: str) -> None:
    store.push(name, insecure=True)
    second = f"{server.host}/me/other:q4"
    store.copy(name, second)
    pushed = store.push(second, insecure=True)
    assert (pushed.mounted, pushed.moved) == (3, 0)
    assert "me/other" in server.owners[DIGEST]
    assert server.count("PATCH", "me/other") == 0


def test_under_another_name(server: Server, store: Store) -> None:
    add(store, "tiny:q4", model=WEIGHTS)
    pushed = store.push("tiny:q4", f"{server.host}/me/tiny:q4", insecure=True)
    assert pushed.name == f"{server.host}/me/tiny:q4"
    assert server.blobs[DIGEST] == WEIGHTS


FAULTS = [
    ("HEAD blobs", Fault(status=502)),
    ("POST uploads", Fault(status=429)),
    ("PATCH uploads", Fault(cut=0)),
    ("PATCH uploads", Fault(cut=70_000)),
    ("PATCH uploads", Fault(cut=100_000)),
    ("PATCH uploads", Fault(status=500)),
    ("PATCH uploads", Fault(lose=True)),
    ("PATCH uploads", Fault(stall=True)),
    ("PUT uploads", Fault(status=503)),
    ("PUT uploads", Fault(lose=True)),
    ("PUT manifests", Fault(status=500)),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("kind", "fault"), FAULTS)
@pytest.mark.parametrize("storage", [False, True])
def test_what_passes_is_tried_again(
    server: Server, store: Store, name: str, kind: str, fault: Fault, storage: bool
) -> None:
    server.storage = storage
    server.faults[kind] = [fault]
    store.push(name, insecure=True)
    published(server, store)


def test_a_server_for_which_no_body_waits(server: Server, store: Store, name: str) -> None:
    server.expects = False
    store.push(name, insecure=True)
    published(server, store)


@pytest.mark.parametrize("fault", [Fault(cut=50_000), Fault(status=503), Fault(stall=True)])
def test_storage_that_fails_is_tried_again(
    server: Server, store: Store, name: str, fault: Fault
) -> None:
    server.storage = True
    server.faults["PUT storage"] = [fault]
    store.push(name, insecure=True)
    published(server, store)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize("kind", ["PATCH uploads", "PUT uploads", "PUT manifests"])
def test_an_interrupted_push_goes_on(
    server: Server, store: Store, name: str, kind: str, storage: bool
) -> None:
    server.storage = storage
    good = 2 if kind == "PATCH uploads" else 0
    server.faults[kind] = [Fault()] * good + [Fault(status=503)] * 40
    with pytest.raises(RegistryError, match="run the command again to go on"):
        store.push(name, insecure=True)
    assert "me/tiny:q4" not in server.manifests
    server.faults[kind].clear()
    before = server.count("POST", "uploads")
    pushed = store.push(name, insecure=True)
    published(server, store)
    assert pushed.moved <= len(WEIGHTS) - 200_000 + 37
    again = {"PATCH uploads": 2, "PUT uploads": 2, "PUT manifests": 0}[kind]
    assert server.count("POST", "uploads") - before == again
    assert not list(Path(store.root.parent, "cache").rglob("*.json"))


def test_a_push_cut_in_the_middle_of_a_part_goes_on_there(
    server: Server, store: Store, name: str
) -> None:
    """Where the registry keeps what came of a part and says how much: within a push, and by the
    next one."""
    server.faults["PATCH uploads"] = [
        Fault(), Fault(cut=30_000), Fault(), Fault(cut=70_000), *[Fault(status=503)] * 40,
    ]  # fmt: skip
    with pytest.raises(RegistryError, match="run the command again to go on"):
        store.push(name, insecure=True)
    server.faults["PATCH uploads"].clear()
    server.ranges_sent.clear()
    store.push(name, insecure=True)
    published(server, store)
    assert server.ranges_sent[0] == "300000-358402"


def test_an_upload_that_is_forgotten_is_begun_anew(server: Server, store: Store, name: str) -> None:
    server.faults["PUT uploads"] = [Fault(status=503)] * 40
    with pytest.raises(RegistryError):
        store.push(name, insecure=True)
    server.faults["PUT uploads"].clear()
    server.uploads.clear()
    store.push(name, insecure=True)
    published(server, store)


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"url":1}', '{"url":"http://x/","offset":-1}'])
def test_rubbish_about_uploads_counts_for_nothing(
    server: Server, store: Store, name: str, text: str
) -> None:
    server.faults["PUT uploads"] = [Fault(status=503)] * 40
    with pytest.raises(RegistryError):
        store.push(name, insecure=True)
    server.faults["PUT uploads"].clear()
    for path in Path(store.root.parent, "cache").rglob("*.json"):
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_text(text)
    store.push(name, insecure=True)
    published(server, store)


@pytest.mark.parametrize("at", ["here", docker_registry.PROGRAM])
def test_two_pushes_at_once(
    server: Server, store: Store, other: Store, tmp_path: Path, at: str
) -> None:
    with ExitStack() as stack:
        host = server.host
        if at == docker_registry.PROGRAM:
            docker_registry.skip_without()
            host = stack.enter_context(docker_registry.serve(tmp_path / "registry"))
        name = f"{host}/me/both:q4"
        add(store, name, model=WEIGHTS, template=b"{{ .Prompt }}")
        at_once(*[lambda: Store(store.root).push(name, insecure=True)] * 2)
        assert other.pull(name, insecure=True).moved == len(WEIGHTS) + 13 + 24
    assert other.manifest_bytes(other.existing(name)) == store.manifest_bytes(store.existing(name))


def test_a_damaged_blob_is_told_of(server: Server, store: Store, name: str) -> None:
    path = store.blobs / DIGEST.replace(":", "-")
    path.write_bytes(b"x" + WEIGHTS[1:])
    with pytest.raises(StoreError, match=r"is damaged: .* hashes to sha256:"):
        store.push(name, insecure=True)
    assert "me/tiny:q4" not in server.manifests


def test_a_model_that_is_removed_or_replaced_meanwhile(
    server: Server, store: Store, name: str
) -> None:
    """A push sends what was there when it began; its blobs go when it has ended."""
    before = store.manifest_bytes(store.existing(name))
    done: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Step) and not done:
            done.append(event.text)
            store.remove(name)
            add(store, name, model=b"another")

    pushed = store.push(name, insecure=True, report=report)
    assert pushed.moved == len(WEIGHTS) + 13 + 24
    assert server.manifests["me/tiny:q4"] == before
    assert server.blobs[DIGEST] == WEIGHTS
    store.tidy()
    assert not (store.blobs / DIGEST.replace(":", "-")).exists()


def test_from_a_full_disk(server: Server, small_disk: Path) -> None:
    """Where nothing can be written nothing is claimed, and the model is sent as ever."""
    store = Store(small_disk / "models")
    name = f"{server.host}/me/tiny:q4"
    add(store, name, model=WEIGHTS[:100_000])
    with (small_disk / "rest").open("wb", buffering=0) as rest, suppress(OSError):
        while rest.write(bytes(4096)) == 4096:
            pass
    store.push(name, insecure=True)
    published(server, store)


def test_what_the_registry_says_is_shown(server: Server, store: Store, name: str) -> None:
    server.faults["PUT manifests"] = [Fault(status=403)]
    with pytest.raises(RegistryError, match=r"pushing manifest: access denied \(403: no luck\)"):
        store.push(name, insecure=True)


def test_a_model_that_is_not_here(store: Store) -> None:
    with pytest.raises(NotFoundError, match="not found"):
        store.push("127.0.0.1:1/me/none", insecure=True)


def test_from_one_store_to_another(server: Server, store: Store, other: Store, name: str) -> None:
    store.push(name, insecure=True)
    other.pull(name, insecure=True)
    mine, theirs = store.list()[0], other.list()[0]
    assert mine.digest == theirs.digest
    document = json.loads(other.manifest_bytes(other.existing(name)))
    assert document["layers"][0]["digest"] == DIGEST
