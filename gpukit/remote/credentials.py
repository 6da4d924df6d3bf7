"""What `docker login` keeps: user names and passwords of registries, by host."""

import json
import os
import re
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpukit.errors import RegistryError
from gpukit.formats.positioned import read_whole

MOST_OF_A_CONFIG = 1 << 20
HELPER_SECONDS = 30
# The user name by which a helper says that the secret is a token to be exchanged.
TOKEN_USER = "<token>"
# Where docker keeps what belongs to its own hub.
_HUB_KEYS = ("https://index.docker.io/v1/", "docker.io")
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io", "auth.docker.io")


@dataclass(frozen=True)
class Credentials:
    """A user's name and password, or a token that is exchanged for others. Never printed."""

    user: str = ""
    password: str = field(default="", repr=False)
    refresh: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The `Authorization` header of name and password."""
        return f"Basic {b64encode(f'{self.user}:{self.password}'.encode()).decode()}"


def config_path() -> Path | None:
    """`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; None without a home folder."""
    if folder := os.environ.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    try:
        return Path.home() / ".docker" / "config.json"
    except RuntimeError:
        return None


def find(host: str) -> Credentials | None:
    """What docker keeps for exactly this host (with its port); None where that is nothing.

    `RegistryError` for a file that cannot be read, and for a helper that fails.
    """
    path = config_path()
    config = _read(path) if path is not None else {}
    keys = (host, *(_HUB_KEYS if host in _HUB_HOSTS else ()))
    helpers = _object(config, "credHelpers")
    helper = next((helpers[key] for key in keys if key in helpers), config.get("credsStore"))
    for key in keys:
        if isinstance(helper, str) and helper and (found := _asked(helper, key)):
            return found
    for key, entry in _object(config, "auths").items():
        if (_host_of(key) == host or key in keys) and (found := _entry(entry)):
            return found
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_whole(path, MOST_OF_A_CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}: registries' passwords are there") from None
    except (ValueError, RecursionError):
        raise RegistryError(f"{path}: no JSON, as docker writes it: mend or remove it") from None
    return found if isinstance(found, dict) else {}


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _host_of(key: str) -> str:
    return re.sub(r"^https?://", "", key).partition("/")[0]


def _entry(entry: Any) -> Credentials | None:
    if not isinstance(entry, dict):
        return None
    values = {key: text for key, text in entry.items() if isinstance(text, str)}
    user, password = values.get("username", ""), values.get("password", "")
    if auth := values.get("auth"):
        try:
            user, _, password = b64decode(auth).decode().partition(":")
        except ValueError:
            return None
    if token := values.get("identitytoken"):
        return Credentials(refresh=token)
    return Credentials(user, password.rstrip("\0")) if user else None


def _asked(helper: str, key: str) -> Credentials | None:
    """What `docker-credential-HELPER get` answers; None where it has nothing for `key`."""
    if not re.fullmatch(r"[\w.-]+", helper):
        raise RegistryError(f"docker's config names the credential helper {helper[:80]!r}: no name")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=key, capture_output=True, text=True, check=False,
            timeout=HELPER_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RegistryError(
            f"{program}, which docker's config names, does not answer ({type(error).__name__}): "
            "install it, or log in with another"
        ) from None
    if done.returncode:
        return None
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        return None
    return Credentials(refresh=secret) if user == TOKEN_USER else Credentials(user, secret)
