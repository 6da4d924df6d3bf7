"""One blob, sent to a registry: not at all where it has it, mounted where another model there has
it, else in parts; gone on with where an earlier push stopped."""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from functools import partial as bound
from pathlib import Path
from urllib.parse import quote, urlencode

from gpukit.errors import RegistryError, StoreError
from gpukit.events import Report, Step
from gpukit.formats.atomic import disk_errors
from gpukit.remote import bodies, crew, early
from gpukit.remote.download import title
from gpukit.remote.partial import part_size
from gpukit.remote.registry import Registry, Reply
from gpukit.remote.sent import Note, Sent, md5
from gpukit.remote.tokens import reason
from gpukit.remote.wire import PASSING, REDIRECTS, Again, Stopped, body_of, retry_after
from gpukit.store.manifest import Layer

# Parts on their way to storage at once. A registry that takes the bytes itself takes one.
STREAMS = 4
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_DONE = (200, 201, 202, 204)
# Codes of an answer to a question about an upload that the registry does not know any more.
_UNKNOWN = (b"BLOB_UPLOAD_UNKNOWN", b"BLOB_UPLOAD_INVALID")


class Outcome(StrEnum):
    """How a blob came to be at the registry."""

    THERE = "there"
    MOUNTED = "mounted"
    SENT = "sent"


class _LostError(Exception):
    """The registry does not know the upload any more."""


class Upload:
    """The way of one blob, the file `path`, to a registry's repository."""

    def __init__(
        self, registry: Registry, layer: Layer, path: Path, note: Note, report: Report
    ) -> None:
        self._registry = registry
        self._layer = layer
        self._path = path
        self._note = note
        self._report = report
        self._sent = Sent()
        self._claim = threading.Lock()  # the address for the next part, one thread at a time
        self._next = 0  # the first byte that no thread has taken
        self._behind: dict[int, tuple[int, str, str]] = {}  # first byte: end, md5, next address
        self._failed = False  # whether a try to send this part has failed
        self._waits = early.HEADER  # until a server wants none of it
        self._moving: dict[int, int] = {}  # first byte of a part: bytes of it on their way
        self.moved = 0

    def run(self, mounts: list[str]) -> Outcome:
        """Bring the blob there; `mounts` are repositories of the same registry that may have it."""
        self._tell()
        outcome = Outcome.THERE if self._is_there() else self._bring(mounts)
        self._note.remove()
        self._report(Step(self._title, self._layer.size, self._layer.size))
        return outcome

    @property
    def _title(self) -> str:
        return f"pushing {title(self._layer.digest)}"

    @property
    def _what(self) -> str:
        return f"blob {title(self._layer.digest)}"

    def _is_there(self) -> bool:
        url = f"{self._registry.path}/blobs/{self._layer.digest}"
        reply = self._registry.call(self._what, "HEAD", url)
        if reply.status == 404:
            return False
        if reply.status not in (*_DONE, *REDIRECTS):
            self._registry.refuse(self._what, reply)
        return True

    def _bring(self, mounts: list[str]) -> Outcome:
        resumed = self._resumed()
        for _ in range(self._registry.wire.patience.tries):
            if not resumed and self._begin(mounts) is Outcome.MOUNTED:
                return Outcome.MOUNTED
            try:
                self._send()
                self._commit()
                return Outcome.SENT
            except _LostError:
                if self._is_there():
                    return Outcome.SENT
                resumed = False
        raise RegistryError(f"{self._registry.name.host}: {self._what}: uploads get lost there")

    def _resumed(self) -> bool:
        """Whether there is an unfinished upload to go on with."""
        self._sent = self._note.read()
        if not self._sent.url or not 0 <= self._sent.offset <= self._layer.size:
            return False
        try:
            self._ask_where()
        except (_LostError, RegistryError):
            return False
        return True

    def _ask_where(self) -> None:
        """Let the registry say how much it has of what was begun. One that does not answer such
        questions is believed to have what we noted."""
        if self._sent.direct:
            return
        reply = self._registry.call(self._what, "GET", self._sent.url)
        if any(code in reply.body for code in _UNKNOWN):
            raise _LostError
        if reply.status not in _DONE:
            return
        if match := _RANGE.fullmatch(reply.headers.get("Range", "")):
            # An upload of nothing is told as 0-0.
            there = int(match[1]) + 1 if match[1] != "0" else 0
            if there > self._layer.size:
                raise _LostError
            self._sent.offset = there
        self._sent.url = self._next_url(reply, self._sent.url)

    def _begin(self, mounts: list[str]) -> Outcome | None:
        url = f"{self._registry.path}/blobs/uploads/"
        for repository in [*mounts[:1], ""]:
            query = {"mount": self._layer.digest, "from": repository} if repository else {}
            asked = f"{url}?{urlencode(query, safe='/')}" if query else url
            reply = self._registry.call(self._what, "POST", asked)
            if reply.status == 201:
                return Outcome.MOUNTED
            if reply.status in _DONE:
                break
            if not repository:
                self._registry.refuse(self._what, reply)
        self._sent = Sent()
        self._sent.url = self._next_url(reply, "")
        if not self._sent.url:
            raise RegistryError(f"{self._registry.name.host}: begins an upload without an address")
        return None

    def _next_url(self, reply: Reply, before: str) -> str:
        told = reply.headers.get("Docker-Upload-Location")
        self._sent.joins |= told is not None
        location = told or reply.headers.get("Location")
        return self._registry.place(before or self._registry.base, location) if location else before

    def _send(self) -> None:
        self._next, self._behind, self._moving = self._sent.offset, {}, {}
        try:
            crew.run([self._send_parts] * STREAMS, STREAMS, self._registry.wire.stop, self._tell)
        except _LostError:
            self._registry.wire.stop.clear()
            raise

    def _tell(self) -> bool:
        done = self._sent.offset + sum(self._moving.copy().values())
        self._report(Step(self._title, min(done, self._layer.size), self._layer.size))
        return False

    def _send_parts(self) -> None:
        """Send parts until none is left. The address of each comes with the answer to the one
        before; where that names storage, another thread goes on while this one sends there."""
        what = f"{self._registry.name.host}: {self._what}"
        while True:
            with self._claim:
                if self._next >= self._layer.size:
                    return
                self._failed = False
                first, storage = self._registry.wire.patiently(what, self._patch)
                end, url = self._next, self._sent.url
            if storage:
                put = bound(self._put, storage, first, end)
                digest = self._registry.wire.patiently(f"{what}: storage", put)
                with self._claim:
                    self._settle(first, end, digest, url)

    def _patch(self) -> tuple[int, str]:
        """Send the next part; its first byte, and the address of storage where it is to go there
        instead. The caller has `_claim`."""
        sent, registry = self._sent, self._registry
        if self._failed and self._next == sent.offset:
            # The registry may have a piece of it, or all.
            self._ask_where()
            self._next = sent.offset
            if self._next >= self._layer.size:
                return self._next, ""
        self._failed = True
        first, end = self._next, min(self._next + part_size(self._layer.size), self._layer.size)
        hasher = md5() if sent.joins else None
        headers = {
            **_length(end - first),
            "Content-Range": f"{first}-{end - 1}",
            "X-Redirect-Uploads": "1",
            **self._waits,
        }
        body = bound(self._body, first, end, hasher)
        with registry.open("PATCH", sent.url, headers, body) as reply:
            answer = Reply(reply.status_code, reply.headers, body_of(reply))
            if answer.status == 307:
                if told := answer.headers.get("Docker-Upload-Location"):
                    sent.url = registry.place(sent.url, told)
                self._next, sent.direct, sent.joins = end, True, True
                return first, registry.target(reply)
        if answer.status == 417:
            self._waits = {}
        if answer.status in (*PASSING, 417):
            raise Again(f"{answer.status} {reason(answer.body)}".strip(), retry_after(reply))
        if answer.status in (404, 416):
            raise _LostError
        if answer.status not in _DONE:
            registry.refuse(self._what, answer)
        self._next, self.moved = end, self.moved + end - first
        sent.url = self._next_url(answer, sent.url)
        self._settle(first, end, hasher.hexdigest() if hasher else "", sent.url)
        return first, ""

    def _settle(self, first: int, end: int, digest: str, url: str) -> None:
        """Note what is there without a gap."""
        self._behind[first] = (end, digest, url)
        while self._sent.offset in self._behind:
            at = self._sent.offset
            self._sent.offset, digest, url = self._behind.pop(at)
            self._sent.md5s.append(digest)
            self._moving.pop(at, None)
            self._note.write(replace(self._sent, url=url))

    def _body(self, first: int, end: int, hasher: "hashlib._Hash | None") -> Iterator[bytes]:
        """The bytes from `first` to `end`, hashed as they go where that is wanted."""

        def seen(data: bytes) -> None:
            self._moving[first] = self._moving.get(first, 0) + len(data)
            if hasher:
                hasher.update(data)
            if self._registry.wire.stop.is_set():
                raise Stopped

        self._moving[first] = 0
        return bodies.of_file(self._path, first, end, seen)

    def _put(self, storage: str, first: int, end: int) -> str:
        """Send a part to storage, without any credential of ours; its md5."""
        hasher = md5()
        body = bound(self._body, first, end, hasher)
        with self._registry.wire.send("PUT", storage, _length(end - first), body) as reply:
            said = reason(body_of(reply))
            if reply.status_code in _DONE:
                self.moved += end - first
                return hasher.hexdigest()
            text = f"{reply.status_code} {said}".strip()
            if reply.status_code in PASSING:
                raise Again(text, retry_after(reply))
            raise RegistryError(f"{self._registry.name.host}: {self._what}: storage says {text}")

    def _commit(self) -> None:
        """Tell the registry that all is there."""
        joint = "&" if "?" in self._sent.url else "?"
        url = f"{self._sent.url}{joint}digest={quote(self._layer.digest, safe='')}{self._sent.etag}"
        reply = self._registry.call(self._what, "PUT", url, {"Content-Length": "0"})
        if reply.status in _DONE:
            return
        if reply.status in (404, 416):
            raise _LostError
        if reply.status == 400:
            self._check_own()
        self._registry.refuse(f"{self._what} is not taken", reply)

    def _check_own(self) -> None:
        """`StoreError` where it is our blob that is wrong."""
        with disk_errors(self._path), self._path.open("rb") as file:
            actual = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if actual != self._layer.digest:
            raise StoreError(
                f"blob {self._layer.digest} is damaged: {self._path} hashes to {actual}: remove "
                "the model, then create or pull it again"
            )


def _length(size: int) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
