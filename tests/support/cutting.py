"""A way to a server that is cut after so many bytes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Way:
    """`address` leads to the server; of each further connection `up` and `down` say after how many
    bytes of requests and of answers it is cut, which is never where they are empty."""

    address: str = ""
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)


@contextmanager
def cutting(target: str) -> Iterator[Way]:
    """A `Way` to the server at `target`, until the block ends."""
    host, _, port = target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        way = Way(f"127.0.0.1:{server.getsockname()[1]}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection((host, int(port)))
                    for source, sink, most in ((near, far, way.up), (far, near, way.down)):
                        left = most.pop(0) if most else 1 << 60
                        arguments = (source, sink, left)
                        threading.Thread(target=_carry, args=arguments, daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield way
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _carry(source: socket.socket, sink: socket.socket, left: int) -> None:
    with suppress(OSError):
        while left and (data := source.recv(min(1 << 16, left))):
            sink.sendall(data)
            left -= len(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        if left == 0 or end is source:
            end.close()
