"""HTTP with patience: what may pass is tried again, and what stalls is cut."""

import platform
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from gpukit.errors import RegistryError, one_line
from gpukit.remote import early
from gpukit.remote.early import MOST_OF_AN_ANSWER
from gpukit.version import VERSION

Body = bytes | Callable[[], Iterator[bytes]]
Result = TypeVar("Result")

REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)
# What the error about an answer says that ended before it was whole.
CUT = ("closed connection", "disconnected")
# Bytes that have to move before failures are counted from the beginning.
PROGRESS = 1 << 20


@dataclass(frozen=True)
class Patience:
    """How often something is tried, seconds between two tries (doubled each time, with jitter) and
    the most of them, and seconds of silence after which a connection is given up."""

    tries: int = 6
    first: float = 0.5
    most: float = 30.0
    stall: float = 30.0


PATIENCE = Patience()


class Again(Exception):
    """Something that may pass: a cut connection, a stall, a server that is busy.

    `after` is what the server asks to wait, `moved` the bytes that the try brought.
    """

    def __init__(self, what: str, after: float = 0.0, moved: int = 0) -> None:
        super().__init__(what)
        self.after = after
        self.moved = moved


class Stopped(Exception):
    """Another part of the same transfer has failed, so this one ends."""


class Wire:
    """Connections, by the proxies of the environment. `stop` ends waits and transfers."""

    def __init__(self, insecure: bool, patience: Patience | None = None) -> None:
        self.insecure = insecure
        self.patience = patience or PATIENCE
        self.stop = threading.Event()
        self._verify = httpx2.create_ssl_context(verify=not insecure)
        self._client = self._made(httpx2.Limits())
        # Connections of its own for each request whose body waits for a word of the server.
        self._watched = self._made(httpx2.Limits(max_keepalive_connections=0))

    def _made(self, limits: httpx2.Limits) -> httpx2.Client:
        return httpx2.Client(
            verify=self._verify,
            timeout=httpx2.Timeout(self.patience.stall, pool=None),
            headers={"User-Agent": agent(), "Accept-Encoding": "identity"},
            limits=limits,
        )

    def close(self) -> None:
        self.stop.set()
        self._client.close()
        self._watched.close()

    @contextmanager
    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body = b""
    ) -> Iterator[httpx2.Response]:
        """The answer, its body not read yet; redirects are not followed. With `early.HEADER` among
        `headers` a body made by a function is sent as far as no answer comes.

        `Again` where the connection fails, then or while the body is read; `RegistryError` for an
        address that is none and for an answer that is no HTTP.
        """
        try:
            with self._answered(method, url, headers, body) as reply:
                yield reply
        except httpx2.ConnectTimeout:
            raise Again(f"no connection to {_host(url)} in {self.patience.stall:g} s") from None
        except httpx2.TimeoutException:
            raise Again(f"no answer for {self.patience.stall:g} s") from None
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise RegistryError(f"{shown(url)}: {one_line(str(error))}") from None
        except httpx2.ConnectError as error:
            if "SSL" in str(error) or "certificate" in str(error):
                raise RegistryError(
                    f"{shown(url)}: no https that can be trusted ({cause(error)}); --insecure "
                    "admits plain http and any certificate"
                ) from None
            raise Again(f"no connection to {_host(url)}: {cause(error)}") from None
        except httpx2.TransportError as error:
            raise failed(url, error) from None

    @contextmanager
    def _answered(
        self, method: str, url: str, headers: Mapping[str, str], body: Body
    ) -> Iterator[httpx2.Response]:
        client, extensions = self._client, {}
        content = body if isinstance(body, bytes) else body()
        if not isinstance(content, bytes) and early.HEADER.items() <= headers.items():
            line = early.Line(method, url, self.patience.stall)
            client, content, extensions = self._watched, line.body(content), {"trace": line.trace}
        with ExitStack() as opened:
            asked = client.stream(
                method, url, headers=dict(headers), content=content, extensions=extensions
            )
            try:
                reply = opened.enter_context(asked)
            except early.Answered as answered:
                reply = answered.reply
            yield reply

    def patiently(self, what: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` gives, tried again as often as patience says where it raises `Again`."""
        failures = 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except Again as error:
                failures = 1 if error.moved >= PROGRESS else failures + 1
                if failures >= self.patience.tries:
                    raise RegistryError(
                        f"{what}: {error} ({failures} tries); what has been moved is kept: run the "
                        "command again to go on"
                    ) from None
                self.stop.wait(self._pause(failures, error.after))

    def _pause(self, failures: int, after: float) -> float:
        """Seconds to wait, between half of the step and all of it."""
        step = min(self.patience.first * 2.0 ** (failures - 1), self.patience.most)
        return max(step * random.uniform(0.5, 1.0), min(after, 2 * self.patience.most))


def failed(url: str, error: httpx2.TransportError) -> Again | RegistryError:
    """What a connection that failed means: an answer that is no HTTP would be none again."""
    is_rubbish = isinstance(error, httpx2.RemoteProtocolError)
    if is_rubbish and not any(word in str(error) for word in CUT):
        return RegistryError(
            f"{shown(url)}: the answer is no HTTP ({cause(error)}); is this the address and port "
            "of a registry?"
        )
    return Again(cause(error))


def agent() -> str:
    """Who we are."""
    return f"gpukit/{VERSION} ({platform.machine()} {platform.system().lower()})"


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what has to be equal for a credential to go there."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        raise RegistryError(f"{shown(url)}: no address") from None
    return parts.scheme, (parts.hostname or "").lower(), port


def _host(url: str) -> str:
    return one_line(urlsplit(url).netloc.rpartition("@")[2])[:80]


def shown(url: str) -> str:
    """An address without its query, which may hold keys, for messages."""
    return one_line(url.partition("?")[0])[:200]


def body_of(reply: httpx2.Response, most: int = MOST_OF_AN_ANSWER) -> bytes:
    """The bytes of an answer; `RegistryError` where there are over `most`."""
    data = bytearray()
    for part in reply.iter_raw():
        data += part
        if len(data) > most:
            raise RegistryError(
                f"{shown(str(reply.url))}: an answer of over {most} bytes, which none should have"
            )
    return bytes(data)


def retry_after(reply: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 where it says nothing that is a number."""
    text = reply.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0


def cause(error: Exception) -> str:
    """What went wrong, in one line."""
    text = one_line(str(error).strip().partition("\n")[0])[:160]
    return text or type(error).__name__
