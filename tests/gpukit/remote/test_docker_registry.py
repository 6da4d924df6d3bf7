"""Debian's docker-registry: a registry that somebody else wrote, and that sends bytes itself."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import docker_registry, docker_tokens
from support.cutting import cutting
from support.stores import add

from gpukit import RegistryError, Store
from gpukit.remote import keys
from gpukit.store.blobs import digest_of


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    docker_registry.skip_without()


WEIGHTS = os.urandom(1000) * 350 + b"end"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serve(tmp_path_factory.mktemp("registry")) as address:
        yield address


def model(store: Store, name: str, weights: bytes = WEIGHTS) -> None:
    add(store, name, model=weights, template=b"{{ .Prompt }}")


def same(store: Store, other: Store, name: str) -> bool:
    mine, theirs = (each.existing(name) for each in (store, other))
    blob = other.blobs / digest_of(WEIGHTS).replace(":", "-")
    return (
        store.manifest_bytes(mine) == other.manifest_bytes(theirs)
        and digest_of(blob.read_bytes()) == f"sha256:{blob.name[7:]}"
    )


def test_push_and_pull(host: str, store: Store, other: Store) -> None:
    name = f"{host}/me/tiny:q4"
    model(store, name)
    pushed = store.push(name, insecure=True)
    assert pushed.moved == pushed.size
    assert store.push(name, insecure=True).moved == 0
    pulled = other.pull(name, insecure=True)
    assert pulled.digest == pushed.digest
    assert same(store, other, name)


def test_a_second_model_is_mounted(host: str, store: Store) -> None:
    first, second = f"{host}/me/first:q4", f"{host}/me/second:q4"
    model(store, first, b"only here")
    store.push(first, insecure=True)
    store.copy(first, second)
    pushed = store.push(second, insecure=True)
    assert (pushed.moved, pushed.mounted) == (0, 3)


@pytest.mark.parametrize("after", [200, 1500, 60_000, 130_000, 250_000, 340_000])
def test_cut_at_every_stage(host: str, store: Store, other: Store, after: int) -> None:
    """Connections that end after so many bytes: what comes through in the end is whole."""
    with cutting(host) as way:
        name = f"{way.address}/me/cut{after}:q4"
        model(store, name, WEIGHTS)
        way.up += [after] * 3
        for _ in range(4):
            try:
                store.push(name, insecure=True)
                break
            except RegistryError:
                continue
        way.up.clear()
        way.down += [after] * 12
        for _ in range(4):
            try:
                other.pull(name, insecure=True)
                break
            except RegistryError:
                assert not other.names()
        assert same(store, other, name)


def test_basic(store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_registry.serve(tmp_path / "registry", basic=True) as host:
        name = f"{host}/me/tiny:q4"
        model(store, name)
        with pytest.raises(RegistryError, match=f"docker login {host}"):
            store.push(name, insecure=True)
        auth = base64.b64encode(b"ann:secret").decode()
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        store.push(name, insecure=True)
        other.pull(name, insecure=True)
    assert same(store, other, name)


def test_a_token_server_that_checks_our_signature(
    store: Store, other: Store, tmp_path: Path
) -> None:
    with docker_tokens.serve(tmp_path / "registry", "me/tiny") as server:
        name = f"{server.host}/me/tiny:q4"
        model(store, name)
        store.push(name, insecure=True)
        other.pull(name, insecure=True)
        asked = [each for each in server.asked if each.path.startswith("/token?")]
        assert len(asked) == 2  # the push and the pull: a token is for all that either asks for
        assert all(
            each.authorization.startswith(f"{keys.load_or_make().public}:") for each in asked
        )
        with pytest.raises(RegistryError, match=r"access denied|unauthorized"):
            store.push(name, f"{server.host}/others/tiny:q4", insecure=True)
    assert same(store, other, name)


def test_a_blob_that_lies(host: str, store: Store, other: Store, tmp_path: Path) -> None:
    with docker_registry.serve(tmp_path / "registry") as address:
        name = f"{address}/me/tiny:q4"
        model(store, name)
        store.push(name, insecure=True)
        digits = digest_of(WEIGHTS)[7:]
        (data,) = (tmp_path / "registry" / "data").rglob(f"{digits}/data")
        data.write_bytes(b"x" * len(WEIGHTS))
        with pytest.raises(RegistryError, match="digest mismatch"):
            other.pull(name, insecure=True)
        assert not other.names()
