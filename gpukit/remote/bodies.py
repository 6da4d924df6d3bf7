"""Large bodies in large pieces: stretches of files on their way out, blobs on their way in."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from gpukit.errors import StoreError
from gpukit.formats.atomic import disk_errors
from gpukit.remote.wire import Again, cause

# Small enough for a processor's cache, which each piece goes through several times.
PIECE = 1 << 18
# A body that has more than this left is read from its connection.
LARGE = 1 << 20
# Seconds after which what has come of a piece is passed on.
LINGER = 0.1


def of_file(path: Path, first: int, end: int, seen: Callable[[bytes], object]) -> Iterator[bytes]:
    """The bytes of `path` from `first` to `end`, in pieces; `seen` is called with each when it has
    been sent."""
    with disk_errors(path), path.open("rb", buffering=0) as file:
        file.seek(first)
        at = first
        while at < end:
            data = file.read(min(PIECE, end - at))
            if not data:
                raise StoreError(f"{path}: ends after {at} bytes, {end} are wanted")
            yield data
            at += len(data)
            seen(data)


def pieces(reply: httpx2.Response, stall: float) -> Iterator[memoryview]:
    """The body of `reply` in order, each piece good until the next is asked for; `Again` where the
    connection ends early or is silent for `stall` seconds.

    The HTTP library copies what it reads several times, and reads little at once. So what is left
    of a large body of known length, behind what came with its header, is read from the connection
    here; that is closed afterwards.
    """
    body = reply.iter_raw()
    connection, left = _connection(reply), int(reply.headers.get("Content-Length", "0"))
    if connection is None or left <= LARGE:
        yield from (memoryview(data) for data in body)
        return
    for data in body:
        # The first piece is all that the library has read so far.
        yield memoryview(data)
        left -= len(data)
        break
    connection.settimeout(stall)
    buffer = memoryview(bytearray(PIECE))
    while left > 0:
        count, failure = _fill(connection, buffer[:left])
        yield buffer[:count]
        left -= count
        if isinstance(failure, TimeoutError):
            raise Again(f"no answer for {stall:g} s")
        if failure is not None:
            raise Again(cause(failure))


def _connection(reply: httpx2.Response) -> socket.socket | None:
    """The socket under `reply`, where the bytes that it gives are those of the body."""
    stream = reply.extensions.get("network_stream")
    length = reply.headers.get("Content-Length", "")
    if stream is None or "Transfer-Encoding" in reply.headers or not length.isdecimal():
        return None
    # TLS inside of TLS, to a proxy, is no socket's.
    if isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject):
        return None
    found = stream.get_extra_info("socket")
    return found if isinstance(found, socket.socket) else None


def _fill(connection: socket.socket, buffer: memoryview) -> tuple[int, OSError | None]:
    """Read until `buffer` is full or has lingered; bytes that came, and what ended it early."""
    count, late = 0, 0.0
    while count < len(buffer):
        try:
            come = connection.recv_into(buffer[count:])
        except OSError as error:
            return count, error
        if not come:
            return count, ConnectionError("the connection ended in the middle of a body")
        count += come
        late = late or time.monotonic() + LINGER
        if time.monotonic() > late:
            break
    return count, None
