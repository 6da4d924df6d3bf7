"""How a registry's challenge is met: basic, a token for docker's credentials, or for our key.

No credential goes to a host that it is not for: a token server elsewhere is asked without one,
or with what docker keeps for that very host.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2

from gpukit.errors import RegistryError
from gpukit.remote import credentials, keys
from gpukit.remote.challenge import Challenge
from gpukit.remote.credentials import Credentials
from gpukit.remote.wire import PASSING, Again, Wire, body_of, origin, retry_after, shown

# Registries take signatures that are about as old as this.
CLOCK_SECONDS = 120


class Tokens:
    """Answers to the challenges of the registry at `base`."""

    def __init__(self, wire: Wire, base: str, key_folder: Path | None) -> None:
        self._wire = wire
        self._base = base
        self._host = urlsplit(base).netloc
        self._key_folder = key_folder

    def answer(self, challenges: list[Challenge]) -> str:
        """The `Authorization` header that meets one of `challenges`; `RegistryError` where none can
        be met."""
        for challenge in challenges:
            if challenge.kind == "bearer":
                return f"Bearer {self._token(challenge)}"
            if (found := credentials.find(self._host)) and found.user:
                return found.basic
            raise RegistryError(
                f"{self._host}: a user's name and password are needed: docker login {self._host}"
            )
        raise RegistryError(
            f"{self._host}: unauthorized, and no way to log in that gpukit knows (basic, bearer)"
        )

    def _token(self, challenge: Challenge) -> str:
        try:
            scheme, host, _ = where = origin(challenge.realm)
        except RegistryError:
            raise RegistryError(
                f"{self._host}: its token server {shown(challenge.realm)!r} is no address"
            ) from None
        if not host or (scheme != "https" and not (scheme == "http" and self._wire.insecure)):
            raise RegistryError(
                f"{self._host}: its token server {shown(challenge.realm)!r} is not at https://; "
                "--insecure allows http://"
            )
        own = where[1:] == origin(self._base)[1:]
        at = self._host if own else urlsplit(challenge.realm).netloc.rpartition("@")[2]
        refused = ""
        for ask in self._ways(challenge, credentials.find(at), own):
            token, refused = self._wire.patiently(f"{at}: no token", ask)
            if token:
                return token
        raise RegistryError(f"{self._host}: unauthorized: {refused}; {self._remedy(at, own)}")

    def _ways(
        self, challenge: Challenge, found: Credentials | None, own: bool
    ) -> list[Callable[[], tuple[str, str]]]:
        plain = challenge.token_url
        if found and found.refresh:
            return [lambda: self._exchanged(challenge, found.refresh)]
        if found:
            return [lambda: self._asked("GET", plain(), {"Authorization": found.basic})]
        anonymous = [lambda: self._asked("GET", plain(), {})]
        return [lambda: self._signed(challenge), *anonymous] if own else anonymous

    def _signed(self, challenge: Challenge) -> tuple[str, str]:
        nonce = secrets.token_urlsafe(16)
        url = challenge.token_url(ts=str(int(time.time())), nonce=nonce)
        key = keys.load_or_make(self._key_folder)
        return self._asked("GET", url, {"Authorization": key.authorization("GET", url)})

    def _exchanged(self, challenge: Challenge, refresh: str) -> tuple[str, str]:
        form = {
            "grant_type": "refresh_token",
            "service": challenge.service,
            "scope": " ".join(challenge.scopes),
            "client_id": "gpukit",
            "refresh_token": refresh,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._asked("POST", challenge.realm, headers, urlencode(form).encode())

    def _asked(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[str, str]:
        """A token, or "" and why there is none."""
        with self._wire.send(method, url, headers, body) as reply:
            data = body_of(reply)
            if reply.status_code in PASSING:
                raise Again(f"{reply.status_code} of the token server", retry_after(reply))
            if reply.status_code != 200:
                return "", f"{reply.status_code} {reason(data)}".strip() + _clock(reply)
        try:
            answer: Any = json.loads(data)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            return "", "the token server's answer is no JSON object"
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            return "", "the token server's answer holds no token"
        return token, ""

    def _remedy(self, at: str, own: bool) -> str:
        if not own:
            return (
                f"the token server is another host, which gets no credentials of {self._host}: "
                f"docker login {at}"
            )
        return (
            "add the key that `gpukit key show` prints to your account there, or "
            f"docker login {self._host}"
        )


def reason(data: bytes) -> str:
    """What a registry says of an error, in one line: the messages of its JSON, or its text."""
    text = data[:4096].decode("utf-8", "replace")
    try:
        root = json.loads(data)
        errors = root.get("errors") or [root]
        said = [str(error.get("message") or error.get("error") or "") for error in errors]
        text = "; ".join(filter(None, said)) or text
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    line = " ".join(text.split())
    return "" if line.startswith("<") else line[:200]


def _clock(reply: httpx2.Response) -> str:
    try:
        there = parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return ""
    off = time.time() - there
    if abs(off) < CLOCK_SECONDS:
        return ""
    way = "ahead of" if off > 0 else "behind"
    return f" (this machine's clock is {abs(off):.0f} s {way} the server's: set it)"
