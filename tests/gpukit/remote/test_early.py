"""Answers that come before a body has been sent: by silent, willing, quick and odd servers."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.answering import answering, certificate

from gpukit.errors import RegistryError
from gpukit.remote import early
from gpukit.remote.wire import Again, Wire, body_of

BODY = os.urandom(1 << 20)
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
DONE = b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\ndone"
ELSEWHERE = (
    b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /there\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nnot\r\n5\r\n here\r\n0\r\n\r\n"
)


class _Server:
    """Says `first` to the head of a request, reads `takes` bytes of its body, and says `then`."""

    def __init__(self, first: bytes = b"", takes: int = 0, then: bytes = b"") -> None:
        self.first, self.takes, self.then = first, takes, then
        self.come = 0

    def __call__(self, connection: socket.socket) -> None:
        with suppress(OSError):  # of a client that has gone
            self._speak(connection)

    def _speak(self, connection: socket.socket) -> None:
        connection.sendall(self.first)
        while self.come < self.takes:
            self.come += len(connection.recv(min(1 << 16, self.takes - self.come)))
        connection.sendall(self.then)
        if self.come < len(BODY):
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(1 << 16):
                self.come += len(more)


def sent(address: str, pieces: list[int]) -> tuple[int, str, bytes]:
    """Status, address of a redirect and body of the answer to a PATCH; how many pieces of the body
    were asked for is added to `pieces`."""

    def body() -> Iterator[bytes]:
        pieces.append(0)
        for at in range(0, len(BODY), 1 << 14):
            pieces[-1] += 1
            yield BODY[at : at + (1 << 14)]

    wire = Wire(insecure=True)
    headers = {**early.HEADER, "Content-Length": str(len(BODY))}
    try:
        with wire.send("PATCH", address, headers, body) as reply:
            return reply.status_code, reply.headers.get("Location", ""), body_of(reply)
    finally:
        wire.close()


@pytest.mark.parametrize("tls", [False, True])
def test_nothing_is_sent_where_the_answer_comes_first(tmp_path: Path, tls: bool) -> None:
    server, pieces = _Server(ELSEWHERE), list[int]()
    with answering(server, certificate(tmp_path) if tls else None) as address:
        assert sent(address, pieces) == (307, "/there", b"not here")
    assert (server.come, pieces) == (0, [])


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("first", [GO_ON, b""])
def test_all_is_sent_to_the_willing_and_after_a_while_to_the_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, tls: bool
) -> None:
    monkeypatch.setattr(early, "PATIENCE", 20.0 if first else 0.05)
    server, pieces = _Server(first, len(BODY), DONE), list[int]()
    with answering(server, certificate(tmp_path) if tls else None) as address:
        assert sent(address, pieces) == (201, "", b"done")
    assert (server.come, pieces) == (len(BODY), [len(BODY) >> 14])


@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_in_the_middle_ends_the_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(early, "EVERY", 0.0)
    monkeypatch.setattr(sys.modules[__name__], "BODY", BODY * 40)
    server, pieces = _Server(GO_ON, 1 << 16, ELSEWHERE), list[int]()
    with answering(server, certificate(tmp_path) if tls else None) as address:
        assert sent(address, pieces)[:2] == (307, "/there")
    assert server.come < len(BODY)


@pytest.mark.parametrize("first", [b"", GO_ON])
def test_a_head_that_comes_in_two_halves(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(early, "PATIENCE", 0.05)

    def answer(connection: socket.socket) -> None:
        connection.sendall(first + DONE[:9])
        time.sleep(0.1)
        connection.sendall(DONE[9:])

    with answering(answer) as address:
        assert sent(address, []) == (201, "", b"done")


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [(b"what?\r\n\r\n", RegistryError, "no HTTP"), (b"", Again, "."),
     (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", RegistryError, "no HTTP"),
     (b"HTTP/1.1 20", Again, "."),
     (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nless", Again, "."),
     (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), RegistryError, "over 1048576 bytes")],
)  # fmt: skip
def test_rubbish_instead_of_an_answer(said: bytes, error: type[Exception], why: str) -> None:
    with answering(_Server(said)) as address, pytest.raises(error, match=why):
        sent(address, [])


def test_silence_in_the_middle_of_an_answer() -> None:
    freed = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(DONE[:-1])
        freed.wait(20)

    with answering(answer) as address:
        with pytest.raises(Again, match=r"no answer for 0\.5 s"):
            sent(address, [])
        freed.set()
