"""Who may: keys, challenges, tokens, docker's credentials, and who never hears of them."""

import base64
import json
import os
import re
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from support.registry import Server, serve
from support.stores import add

from gpukit import GpukitError, RegistryError, Store
from gpukit.remote import credentials, keys
from gpukit.remote.challenge import Challenge, parse_challenges


@pytest.fixture
def name(server: Server, store: Store) -> str:
    name = f"{server.host}/me/tiny:q4"
    add(store, name, model=b"weights")
    return name


def docker(host: str, **entry: str) -> None:
    """Let docker's config have `entry` for `host`."""
    path = credentials.config_path()
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {host: entry}}))


ANN = {"auth": base64.b64encode(b"ann:secret").decode()}


def test_a_key_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    key = keys.load_or_make(folder)
    assert keys.load_or_make(folder).line == key.line
    path = folder / "id_ed25519"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (folder / "id_ed25519.pub").read_text() == f"{key.line}\n"
    assert path.read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert sorted(os.listdir(folder)) == ["id_ed25519", "id_ed25519.pub"]
    assert re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]{68}", key.line)


def test_a_key_of_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    try:
        subprocess.run(command, check=True)
    except OSError:
        pytest.skip("there is no ssh-keygen here")
    assert keys.load_or_make(tmp_path).line == path.with_suffix(".pub").read_text().strip()


@pytest.mark.parametrize("data", [b"", b"rubbish", b"-----BEGIN OPENSSH PRIVATE KEY-----\n!\n"])
def test_what_is_no_key(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "id_ed25519").write_bytes(data)
    with pytest.raises(RegistryError, match="no unencrypted OpenSSH key"):
        keys.load_or_make(tmp_path)


def test_a_signature_of_known_bytes() -> None:
    """RFC 8032's first key, over a text that is signed once and for all."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    private = Ed25519PrivateKey.from_private_bytes(secret)
    key = keys.Key(private, "PUB")
    public, _, signature = key.authorization("GET", "https://host/token?a=b").partition(":")
    assert public == "PUB"
    nothing = (
        b"ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
    )
    private.public_key().verify(
        base64.b64decode(signature), b"GET,https://host/token?a=b," + nothing
    )


def test_the_token_server_checks_our_signature(server: Server, store: Store, name: str) -> None:
    server.auth = "token"
    store.push(name, insecure=True)
    asked = [each for each in server.asked if each.path.startswith("/token")]
    assert len(asked) == 1
    query = asked[0].path.partition("?")[2]
    assert re.fullmatch(
        r"nonce=[\w-]{22}&scope=repository%3Ame%2Ftiny%3Apull%2Cpush&"
        r"scope=repository%3Ame%2Fother%3Apull&service=ollama\+test&ts=\d{10}",
        query,
    )
    assert asked[0].authorization.startswith(keys.load_or_make().public + ":")


def test_a_token_that_expires_is_had_anew(server: Server, store: Store, name: str) -> None:
    server.auth = "token"
    store.push(name, insecure=True)
    server.token = "tok-2"
    store.push(name, insecure=True)
    assert server.count("GET", "/token") == 2


def test_basic_by_dockers_config(server: Server, store: Store, name: str) -> None:
    server.auth = "basic"
    with pytest.raises(RegistryError, match=f"docker login {server.host}"):
        store.push(name, insecure=True)
    docker("other.example", **ANN)
    with pytest.raises(RegistryError, match="docker login"):
        store.push(name, insecure=True)
    assert not any(each.authorization for each in server.asked)
    docker(f"https://{server.host}/v1/", **ANN)
    store.push(name, insecure=True)
    assert "me/tiny:q4" in server.manifests


def test_a_credential_helper(
    server: Server, store: Store, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.auth = "basic"
    helper = tmp_path / "docker-credential-safe"
    answer = '{"Username":"ann","Secret":"secret"}'
    helper.write_text(f"#!/bin/sh\n[ \"$(cat)\" = {server.host} ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text('{"credsStore":"safe"}')
    store.push(name, insecure=True)
    (tmp_path / "config.json").write_text('{"credsStore":"../../safe"}')
    with pytest.raises(RegistryError, match="no name"):
        store.push(name, insecure=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"auths":[]}', '{"auths":{"h":{"auth":"%%"}}}'])
def test_rubbish_in_dockers_config(text: str) -> None:
    path = credentials.config_path()
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(text)
    if text == "{":
        with pytest.raises(RegistryError, match="no JSON"):
            credentials.find("h")
    else:
        assert credentials.find("h") is None


def test_a_token_server_elsewhere_gets_no_credentials(
    server: Server, store: Store, name: str
) -> None:
    docker(server.host, **ANN)
    with serve() as thief:
        server.auth, server.realm = "token", f"http://{thief.host}/token"
        with pytest.raises(RegistryError, match=r"gets no credentials of 127\.0\.0\.1"):
            store.push(name, insecure=True)
        assert [each.authorization for each in thief.asked] == [""]


def test_a_token_server_without_https(server: Server, store: Store, name: str) -> None:
    server.auth, server.realm = "token", "ftp://127.0.0.1/token"
    with pytest.raises(RegistryError, match="is not at https://"):
        store.push(name, insecure=True)
    server.realm = "http://[here"
    with pytest.raises(RegistryError, match=r"token server 'http://\[here' is no address"):
        store.push(name, insecure=True)


def test_a_clock_that_is_off(
    server: Server, store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support import registry

    def late(self: Any, timestamp: Any = None) -> str:
        return formatdate(time.time() - 4000, usegmt=True)

    monkeypatch.setattr(registry._Handler, "date_time_string", late)
    monkeypatch.setattr(registry._Handler, "_token", lambda self, it: self._send(403))
    server.auth = "token"
    with pytest.raises(RegistryError, match=r"clock is 4\d{3} s ahead of the server's"):
        store.push(name, insecure=True)


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"token":7}', b'{"token":"a\\nb"}', b"[" * 9999])
def test_rubbish_for_a_token(
    server: Server, store: Store, name: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    from support import registry

    monkeypatch.setattr(registry._Handler, "_token", lambda self, it: self._send(200, answer))
    server.auth = "token"
    with pytest.raises(RegistryError, match="unauthorized: the token server's answer"):
        store.push(name, insecure=True)


PIECES = ["bearer", "basic", " ", ",", '"', "\\", "=", "realm=", "scope=", "https://h", "x", "\n"]


def test_challenges() -> None:
    header = (
        'Negotiate, Basic realm="a, b", Bearer realm="https://h/t?x=1",service="s s",'
        'scope="repository:a/b:pull,push repository:c/d:pull"'
    )
    bearer, basic = parse_challenges([header.removeprefix("Negotiate, ")])
    scopes = ("repository:a/b:pull,push", "repository:c/d:pull")
    assert bearer == Challenge("bearer", "https://h/t?x=1", "s s", scopes)
    assert basic.kind == "basic"
    assert bearer.token_url(ts="1", nonce="n") == (
        "https://h/t?nonce=n&scope=repository%3Aa%2Fb%3Apull%2Cpush&scope=repository%3Ac%2Fd%3Apull"
        "&service=s+s&ts=1&x=1"
    )


@settings(deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_no_challenge_breaks_the_parser(header: str) -> None:
    for challenge in parse_challenges([header]):
        try:
            challenge.token_url(ts="1")
        except (GpukitError, ValueError):
            assert challenge.realm
