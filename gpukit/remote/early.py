"""An answer that comes before a large body has been sent: a redirect to storage, or a refusal.

The HTTP library reads nothing before it has sent all. A registry of Ollama's kind answers the head
of a part with the address of storage, so all bytes would go twice. So the request says
`Expect: 100-continue` (RFC 9110, 10.1.1): its body waits for a word of the server, for a second at
most, and is broken off whenever an answer comes.
"""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

import h11
import httpx2

HEADER = {"Expect": "100-continue"}
# Seconds that a body waits: some servers say nothing before they have it.
PATIENCE = 1.0
# Seconds between two looks whether there is an answer, while the body is sent.
EVERY = 0.05
# Of an answer that is no blob and no manifest.
MOST_OF_AN_ANSWER = 1 << 20
_AT_ONCE = 1 << 16


class Answered(Exception):
    """The answer has come, so what is left of the body is not sent."""

    def __init__(self, reply: httpx2.Response) -> None:
        super().__init__(reply.status_code)
        self.reply = reply


class Line:
    """The connection of one request, which has to be a new one: only of those `trace` is told."""

    def __init__(self, method: str, url: str, stall: float) -> None:
        self._request = httpx2.Request(method, url)
        self._stall = stall
        self._connection: socket.socket | None = None
        self._reader = h11.Connection(h11.CLIENT)
        self._reader.send(h11.Request(method=method, target="/", headers=[("Host", "here")]))
        self._told = False  # whether the server has said to go on

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What the HTTP library tells of its connections."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stream = info["return_value"]
            found = stream.get_extra_info("socket")
            # TLS inside of TLS, to a proxy, is no socket's.
            inner = isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject)
            self._connection = found if isinstance(found, socket.socket) and not inner else None

    def body(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """`pieces`, as long as no answer comes; `Answered` where one does."""
        deadline = time.monotonic() + min(PATIENCE, self._stall)
        while not self._told and (left := deadline - time.monotonic()) > 0:
            if not self._look(left):
                break
        deadline = 0.0
        for piece in pieces:
            if (now := time.monotonic()) >= deadline:
                deadline = now + EVERY
                self._look(0.0)
            yield piece

    def _look(self, seconds: float) -> bool:
        """Read what has come within `seconds`; whether the server still speaks with us."""
        if self._connection is None:
            return False
        try:
            data = _read(self._connection, seconds)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            data = b""
        if not data:
            self._connection = None  # the library will see why
            return False
        try:
            self._take(data, self._connection)
        except h11.RemoteProtocolError as error:
            raise httpx2.RemoteProtocolError(str(error)) from None
        except TimeoutError:
            raise httpx2.ReadTimeout("") from None
        except OSError as error:
            raise httpx2.ReadError(str(error)) from None
        return True

    def _take(self, data: bytes, connection: socket.socket) -> None:
        self._reader.receive_data(data)
        event = self._reader.next_event()
        while True:
            if isinstance(event, h11.InformationalResponse):
                self._told = True
            elif event is h11.NEED_DATA and self._reader.trailing_data[0]:
                # Half of a head: the library could do nothing with the rest.
                self._reader.receive_data(_read(connection, self._stall))
            else:
                break
            event = self._reader.next_event()
        if isinstance(event, h11.Response):
            raise Answered(self._reply(event, connection))

    def _reply(self, head: h11.Response, connection: socket.socket) -> httpx2.Response:
        body = bytearray()
        while len(body) <= MOST_OF_AN_ANSWER:
            event = self._reader.next_event()
            if event is h11.NEED_DATA:
                self._reader.receive_data(_read(connection, self._stall))
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        return httpx2.Response(
            head.status_code,
            headers=list(head.headers.raw_items()),
            stream=_Body(bytes(body)),
            request=self._request,
        )


class _Body(httpx2.SyncByteStream):
    """The body of an answer, which nobody has asked for yet."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data


def _read(connection: socket.socket, seconds: float) -> bytes:
    connection.settimeout(seconds)
    return connection.recv(_AT_ONCE)
