"""Servers that speak no sense, or send us elsewhere: one line each, and no credential leaves."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support import registry
from support.registry import Server, serve
from support.stores import add

from gpukit import RegistryError, Store
from gpukit.remote import credentials

HEAD = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"


@contextmanager
def saying(answer: bytes, asked: list[bytes] | None = None) -> Iterator[str]:
    """A server that says `answer` to everybody and closes; its address. `asked` gets requests."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        request = connection.recv(1 << 16)
                        if asked is not None and request.startswith(b"GET"):
                            asked.append(request)
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(1 << 16)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        bytes(range(256)) * 20,
        b"HTTP/1.1 999 \r\n" + EMPTY,
        b"HTTP/1.1 200\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        HEAD + b"Content-Length: 7\r\nContent-Length: 9\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X: " + b"a" * 300_000 + b"\r\n" + EMPTY,
        b"HTTP/1.1 429 Slow\r\nRetry-After: 1e999\r\n" + EMPTY,
        b"HTTP/1.1 302 Found\r\n" + EMPTY,
        *(
            b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n" + EMPTY
            for location in (
                b"http://[::1", b"http://h:99999999/", b"http://", b"//", b"\xff\xfe",
                b"http://a b/", b"file:///etc/passwd", b"javascript:1", b"http://127.0.0.1:0/",
                b"http://\xe4.\xff/x",
            )
        ),
        *(
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: " + challenge + b"\r\n" + EMPTY
            for challenge in (
                b"", b"Bearer", b'Bearer realm="', b'Bearer realm="http://["', b"Basic \xff",
                b'Bearer realm="http://h:x/"', b'Bearer realm="\xe4"', b"Digest x", b" ," * 2000,
                b'Bearer realm="http://127.0.0.1:1/\\""', b"Bearer " + b" " * 60_000 + b"x",
            )
        ),
    ],
)  # fmt: skip
def test_answers_that_are_none(store: Store, answer: bytes) -> None:
    with saying(answer) as host, pytest.raises(RegistryError) as caught:
        store.pull(f"{host}/me/tiny", insecure=True)
    assert "\n" not in str(caught.value)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("answer", "tries", "told"),
    [
        (
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            1,
            r"the answer is no HTTP \(illegal .*; is this the a",
        ),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 1, "the answer is no HTTP"),
        (HEAD + b"Content-Length: 9\r\n\r\n{", 4, r"closed connection .*\(4 tries\)"),
        (b"HTTP/1.1 2", 4, r"disconnected .*\(4 tries\)"),
    ],
)
def test_what_is_no_http_is_asked_once_and_what_is_cut_again(
    store: Store, answer: bytes, tries: int, told: str
) -> None:
    asked: list[bytes] = []
    with saying(answer, asked) as host, pytest.raises(RegistryError, match=told):
        store.pull(f"{host}/me/tiny", insecure=True)
    assert len(asked) == tries


@pytest.fixture
def known(server: Server) -> Iterator[Server]:
    """A registry that we have a password for."""
    path = credentials.config_path()
    assert path is not None
    path.parent.mkdir(parents=True)
    auth = base64.b64encode(b"ann:secret").decode()
    path.write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
    server.auth = "basic"
    yield server
    assert any(each.authorization for each in server.asked)


def test_an_upload_elsewhere_gets_no_credentials(
    known: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{known.host}/me/tiny:q4"
    add(store, name, model=b"weights")
    with serve() as thief:

        def begin(self: Any, it: Server, repository: str, query: object) -> None:
            self._send(202, b"", {"Location": f"http://{thief.host}/v2/me/tiny/blobs/uploads/x"})

        monkeypatch.setattr(registry._Handler, "_begin", begin)
        with pytest.raises(RegistryError):
            store.push(name, insecure=True)
        assert {each.method for each in thief.asked} >= {"PATCH"}
        assert not any(each.authorization for each in thief.asked)


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_what_is_redirected_elsewhere_is_asked_for_without_credentials(
    known: Server, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = f"{known.host}/me/tiny:q4"
    add(store, name, model=b"weights")
    store.push(name, insecure=True)
    route = registry._Handler._route
    with serve(Server(known.blobs, known.owners, known.manifests)) as elsewhere:

        def redirect(self: Any, it: Server, kind_: str) -> None:
            if it is known and kind_ == kind:
                self._send(307, b"", {"Location": f"http://{elsewhere.host}{self.path}"})
            else:
                route(self, it, kind_)

        monkeypatch.setattr(registry._Handler, "_route", redirect)
        other.pull(name, insecure=True)
        assert elsewhere.asked
        assert not any(each.authorization for each in elsewhere.asked)
