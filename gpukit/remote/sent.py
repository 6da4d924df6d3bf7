"""How far the upload of a blob has come, kept so that the next push goes on there."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpukit.formats.positioned import read_whole, write_at

MOST_OF_A_NOTE = 1 << 20


@dataclass
class Sent:
    """The address for what comes next, how many bytes have arrived, the md5 of each part of them
    ("" where it is not known), whether they went to storage, of which the registry says nothing
    when asked, and whether the registry speaks as Ollama's does, which joins parts by their md5s.
    """

    url: str = ""
    offset: int = 0
    md5s: list[str] = field(default_factory=list)
    direct: bool = False
    joins: bool = False

    @property
    def etag(self) -> str:
        """What tells storage, as a part of a query, how to join the parts; nothing where the
        registry has taken them."""
        if not all(self.md5s):
            return ""
        joined = md5(b"".join(map(bytes.fromhex, self.md5s))).hexdigest()
        return f"&etag={joined}-{len(self.md5s)}"


def md5(data: bytes = b"") -> "hashlib._Hash":
    """The MD5 of `data`, which can be gone on with."""
    return hashlib.md5(data, usedforsecurity=False)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/gpukit/uploads`, else `~/.cache/gpukit/uploads`."""
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path(os.path.expanduser("~")) / ".cache"
    return home / "gpukit" / "uploads"


class Note:
    """The file of one upload. Without one (another push has it, or nothing can be written there)
    everything is as if it were empty."""

    def __init__(self, path: Path | None, fd: int = -1) -> None:
        self._path = path
        self._fd = fd

    def read(self) -> Sent:
        """What an earlier push has left; nothing where that is nothing, or rubbish."""
        if self._path is None:
            return Sent()
        with suppress(OSError, ValueError, TypeError, RecursionError):
            found = Sent(**json.loads(read_whole(self._path, MOST_OF_A_NOTE)))
            texts = [found.url, *found.md5s]
            if all(isinstance(text, str) for text in texts) and type(found.offset) is int:
                return found
        return Sent()

    def write(self, sent: Sent) -> None:
        """Keep `sent`."""
        if self._path is None:
            return
        data = json.dumps(asdict(sent)).encode()
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            write_at(self._fd, memoryview(data), 0)

    def remove(self) -> None:
        """Forget it: the blob is there."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


@contextmanager
def held(folder: Path, repository: str, digest: str) -> Iterator[Note]:
    """The note of a blob's upload to a repository, held against other pushes. Addresses of uploads
    hold keys, so that only the user can read it."""
    name = hashlib.sha256(f"{repository} {digest}".encode()).hexdigest()[:32]
    path = folder / f"{name}.json"
    fd = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        note = Note(path, fd)
    except OSError:
        note = Note(None)
    try:
        yield note
    finally:
        if fd >= 0:
            os.close(fd)
