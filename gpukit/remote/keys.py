"""The Ed25519 key by which registries of Ollama's kind know a user: ~/.ollama/id_ed25519."""

import os
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.errors import RegistryError
from gpukit.formats.atomic import disk_errors, sync_folder, temporary_name
from gpukit.formats.positioned import read_whole, write_all

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NAME = "id_ed25519"
MOST_OF_A_KEY = 16 << 10
# What stands for the body in the signed text: base64 of the hex sha256 of nothing.
_NO_BODY = (
    "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
)


@dataclass(frozen=True)
class Key:
    """A private key, and `public`: the base64 text of its public half in OpenSSH's form."""

    private: "Ed25519PrivateKey"
    public: str

    @property
    def line(self) -> str:
        """The line of a `.pub` file, which ollama.com takes as it is."""
        return f"ssh-ed25519 {self.public}"

    def authorization(self, method: str, url: str) -> str:
        """The `Authorization` header that signs a request without a body for exactly this URL."""
        signature = self.private.sign(f"{method},{url},{_NO_BODY}".encode())
        return f"{self.public}:{b64encode(signature).decode()}"


def default_folder() -> Path:
    """`~/.ollama`; `RegistryError` for a user without a home folder."""
    try:
        return Path.home() / ".ollama"
    except RuntimeError:
        raise RegistryError(
            "there is no home folder, so no place for a key: set HOME to a folder"
        ) from None


def load_or_make(folder: Path | None = None) -> Key:
    """The key in `folder`, by default `~/.ollama`; made (mode 0600) where there is none.

    `RegistryError` for a file that is no unencrypted Ed25519 key, `DiskError` for one that can be
    neither read nor written.
    """
    path = (default_folder() if folder is None else folder) / NAME
    with disk_errors(path):
        if not path.exists():
            _make(path)
        return _load(path, read_whole(path, MOST_OF_A_KEY))


def _load(path: Path, data: bytes) -> Key:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        private = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = str(error).strip().partition("\n")[0][:120]
        raise RegistryError(
            f"{path}: no unencrypted OpenSSH key ({why}): move it away, and a new one is made"
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise RegistryError(
            f"{path}: a key of another kind; registries take Ed25519 only: move it away, and a new "
            "one is made"
        )
    return Key(private, _public(private).partition(" ")[2])


def _public(private: "Ed25519PrivateKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _make(path: Path) -> None:
    """Write a new key and its `.pub`; one that another process puts there meanwhile stays."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    data = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = _written(path, data, 0o600)
    try:
        os.link(draft, path)  # unlike a rename, never over a key that is there
    except FileExistsError:
        return
    finally:
        draft.unlink()
    public = path.with_name(NAME + ".pub")
    _written(public, f"{_public(private)}\n".encode(), 0o644).replace(public)
    sync_folder(path.parent)


def _written(path: Path, data: bytes, mode: int) -> Path:
    """A new temporary file beside `path` with `data`, synced."""
    draft = temporary_name(path)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(fd, memoryview(data))
        os.fsync(fd)
    finally:
        os.close(fd)
    return draft
