"""A registry of models: Ollama's, or any that speaks the OCI's protocol (`/v2/`)."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urljoin

import httpx2

from gpukit.errors import ArgumentError, RegistryError
from gpukit.remote.challenge import parse_challenges
from gpukit.remote.tokens import Tokens, reason
from gpukit.remote.wire import (
    PASSING,
    REDIRECTS,
    Again,
    Body,
    Patience,
    Wire,
    body_of,
    origin,
    retry_after,
    shown,
)
from gpukit.store.names import ModelName

MOST_REDIRECTS = 10


@dataclass(frozen=True)
class Reply:
    """An answer that was read whole."""

    status: int
    headers: httpx2.Headers
    body: bytes


def scheme_of(text: str) -> str:
    """`http` or `https` where `text`, a model's name, begins so, else ""."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return ""
    if scheme.lower() not in ("http", "https"):
        raise ArgumentError(f"{text[:100]}: {scheme[:40]}:// is no way to a registry; https:// is")
    return scheme.lower()


class Registry:
    """The repository of one model at its registry. Use it in a `with` block.

    `insecure` admits plain http and certificates that nobody vouches for; with it and no scheme
    https is tried first.
    """

    def __init__(
        self,
        name: ModelName,
        *,
        scheme: str = "",
        insecure: bool = False,
        key_folder: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        if scheme == "http" and not insecure:
            raise ArgumentError(
                f"insecure protocol http: {name.host} is asked over https; --insecure allows http"
            )
        self.name = name
        self.wire = Wire(insecure, patience)
        self._authorization = ""
        self._lock = threading.Lock()
        self._key_folder = key_folder
        self.base = f"{scheme or 'https'}://{name.host}"
        try:
            origin(self.base)
            if insecure and not scheme and not self._answers():
                self.base = f"http://{name.host}"
        except BaseException:
            self.wire.close()
            raise
        self._tokens = Tokens(self.wire, self.base, key_folder)

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_error: object) -> None:
        self.wire.close()

    def _answers(self) -> bool:
        """Whether something speaks https there."""
        try:
            with self.wire.send("GET", f"{self.base}/v2/", {}):
                return True
        except (Again, RegistryError):
            return False

    @property
    def path(self) -> str:
        """The address of the repository."""
        return f"{self.base}/v2/{self.name.namespace}/{self.name.model}"

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
    ) -> Iterator[httpx2.Response]:
        """The answer, its body not read yet, after a challenge was met where there was one.

        Our `Authorization` goes to the registry's own origin only.
        """
        own = origin(url) == origin(self.base)
        for again in (True, False):
            used = self._authorization if own else ""
            sent = {**(headers or {}), **({"Authorization": used} if used else {})}
            with self.wire.send(method, url, sent, body) as reply:
                if reply.status_code != 401 or not own or not again:
                    yield reply
                    return
                challenges = parse_challenges(reply.headers.get_list("WWW-Authenticate"))
            with self._lock:
                # Another thread may have met it meanwhile.
                if self._authorization == used:
                    self._authorization = self._tokens.answer(challenges)

    @contextmanager
    def follow(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """The answer to a GET behind all redirects."""
        for _ in range(MOST_REDIRECTS):
            with self.open("GET", url, headers) as reply:
                if reply.status_code not in REDIRECTS:
                    yield reply
                    return
                url = self.target(reply)
        raise RegistryError(f"{self.name.host}: over {MOST_REDIRECTS} redirects for {shown(url)}")

    def target(self, reply: httpx2.Response) -> str:
        """Where a redirect leads; `RegistryError` where that is less safe than where it is from."""
        location = reply.headers.get("Location", "")
        if not location:
            raise RegistryError(f"{self.name.host}: a redirect without an address")
        return self.place(str(reply.url), location)

    def place(self, start: str, location: str) -> str:
        """The address that `location`, of an answer at `start`, means; see `target`."""
        try:
            url = urljoin(start, location)
            scheme = origin(url)[0]
        except (ValueError, RegistryError):
            raise RegistryError(
                f"{self.name.host}: sends us to {shown(location)!r}, which is no address"
            ) from None
        if scheme != "https" and not (scheme == "http" and self.wire.insecure):
            raise RegistryError(
                f"{self.name.host}: sends us to {shown(url)}, which is not https:// as it is itself"
            )
        return url

    def call(
        self,
        what: str,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        most: int = 1 << 20,
    ) -> Reply:
        """The whole answer, whatever its status but those that pass, tried again where need be.

        GETs follow redirects. `what` begins the message where nothing helps.
        """

        def attempt() -> Reply:
            opened = (
                self.follow(url, headers or {})
                if method == "GET"
                else self.open(method, url, headers, body)
            )
            with opened as reply:
                data = b"" if method == "HEAD" else body_of(reply, most)
                if reply.status_code in PASSING:
                    text = f"{reply.status_code} {reason(data)}".strip()
                    raise Again(text, retry_after(reply))
                return Reply(reply.status_code, reply.headers, data)

        return self.wire.patiently(f"{self.name.host}: {what}", attempt)

    def refuse(self, what: str, reply: Reply) -> NoReturn:
        """Raise the `RegistryError` of an answer that is no success."""
        said = reason(reply.body)
        tail = f": {said}" if said else ""
        if reply.status in (401, 403):
            raise RegistryError(
                f"{self.name.host}: {what}: access denied ({reply.status}{tail}); the account of "
                "the key that `gpukit key show` prints, or of docker login, must be allowed to"
            )
        raise RegistryError(f"{self.name.host}: {what}: {reply.status}{tail}")
