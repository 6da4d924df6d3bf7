"""Large bodies, read from their connection: plain, by TLS, cut, silent, and of no known length."""

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.answering import answering, certificate

from gpukit.errors import StoreError
from gpukit.remote import bodies, crew
from gpukit.remote.wire import Again, Wire

BODY = os.urandom(1000) * 1200 + b"end"
KNOWN = f"Content-Length: {len(BODY)}\r\n".encode()
# How far the library reads with the header, at most.
WITH_THE_HEADER = 1 << 16


def whole(header: bytes, body: bytes = BODY) -> Callable[[socket.socket], object]:
    return lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n" + body)


def fetched(address: str) -> list[bytes]:
    wire = Wire(insecure=True)
    try:
        with wire.send("GET", address, {}) as reply:
            return [bytes(piece) for piece in bodies.pieces(reply, wire.patience.stall)]
    finally:
        wire.close()


@pytest.mark.parametrize("tls", [False, True])
def test_a_large_body_comes_in_large_pieces(tmp_path: Path, tls: bool) -> None:
    context = certificate(tmp_path) if tls else None
    with answering(whole(KNOWN), context) as address:
        found = fetched(address)
    assert b"".join(found) == BODY
    assert max(map(len, found)) > WITH_THE_HEADER


CHUNKED = b"".join(
    b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:900_000], BODY[900_000:], b"")
)


@pytest.mark.parametrize(
    ("header", "body"),
    [(b"", BODY), (b"Transfer-Encoding: chunked\r\n", CHUNKED),
     (b"Transfer-Encoding: chunked\r\n" + KNOWN, CHUNKED)],
)  # fmt: skip
def test_a_body_of_no_known_length(header: bytes, body: bytes) -> None:
    with answering(whole(header, body)) as address:
        assert b"".join(fetched(address)) == BODY


def test_what_comes_behind_a_body_is_not_of_it() -> None:
    with answering(whole(KNOWN, BODY + b"HTTP/1.1 200 OK\r\n\r\n")) as address:
        assert b"".join(fetched(address)) == BODY


@pytest.mark.sampled(3)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("come", [0, 30_000, 700_000])
@pytest.mark.parametrize("silent", [False, True])
def test_what_came_before_the_end_is_kept(
    tmp_path: Path, tls: bool, come: int, silent: bool
) -> None:
    """All that came is given, then why there is no more."""
    freed = threading.Event()

    def answer(connection: socket.socket) -> None:
        whole(KNOWN, BODY[:come])(connection)
        if silent:
            freed.wait(20)

    found = bytearray()
    with answering(answer, certificate(tmp_path) if tls else None) as address:
        wire = Wire(insecure=True)
        why = f"no answer for {wire.patience.stall:g} s" if silent else "."

        def fetch() -> None:
            with wire.send("GET", address, {}) as reply:
                for piece in bodies.pieces(reply, wire.patience.stall):
                    found.extend(piece)

        with pytest.raises(Again, match=why):
            fetch()
        freed.set()
        wire.close()
    assert found == BODY[:come]


class _Stream:
    """A connection of TLS inside of TLS: its socket gives what is still encrypted twice."""

    def get_extra_info(self, what: str) -> Any:
        if what == "ssl_object":
            return ssl.create_default_context().wrap_bio(
                ssl.MemoryBIO(), ssl.MemoryBIO(), False, "h"
            )
        return socket.socket()


def test_tls_inside_of_tls_is_left_to_the_library() -> None:
    stream = httpx2.ByteStream(BODY)
    reply = httpx2.Response(
        200, headers={"Content-Length": str(len(BODY))}, stream=stream,
        extensions={"network_stream": _Stream()},
    )  # fmt: skip
    assert b"".join(bodies.pieces(reply, 1.0)) == BODY


def test_a_file_that_is_shorter_than_its_manifest_says(tmp_path: Path) -> None:
    path, hasher = tmp_path / "blob", hashlib.sha256()
    path.write_bytes(BODY)
    assert b"".join(bodies.of_file(path, 5, len(BODY), hasher.update)) == BODY[5:]
    assert hasher.digest() == hashlib.sha256(BODY[5:]).digest()
    with pytest.raises(StoreError, match=f"ends after {len(BODY)} bytes, 9999999 are wanted"):
        list(bodies.of_file(path, 5, 9_999_999, hasher.update))


@pytest.mark.parametrize("more", [False, True])
def test_threads_begin_one_by_one(more: bool) -> None:
    """Tasks that wait for each other need as many threads; else one does them all."""
    together, names = threading.Barrier(3 if more else 1), set()

    def task() -> None:
        together.wait(20)
        names.add(threading.current_thread().name)

    crew.run([task] * 3, 8, threading.Event(), lambda: False, lambda: more)
    assert len(names) == (3 if more else 1)
