"""One blob of a registry, brought into a `Partial`: by ranges at once, gone on with where it
stopped, and hashed before anybody sees it."""

import re
import time
from functools import partial as bound

import httpx2

from gpukit.errors import RegistryError
from gpukit.events import Report, Step
from gpukit.formats.atomic import disk_errors
from gpukit.remote import bodies, crew
from gpukit.remote.partial import Part, Partial
from gpukit.remote.registry import Registry
from gpukit.remote.tokens import reason
from gpukit.remote.wire import PASSING, Again, Stopped, body_of, origin, retry_after

STREAMS = 8
# Bytes a second beyond which no stream is added.
ENOUGH = 200_000_000
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
# Hashed between two looks at the threads, so that progress is told while much is behind.
_HASHED_AT_ONCE = 32 << 20


def title(digest: str) -> str:
    """How a blob is called in what users see."""
    return digest.removeprefix("sha256:")[:12]


class Download:
    """The way of one blob into the store's unfinished files."""

    def __init__(self, registry: Registry, unfinished: Partial, report: Report) -> None:
        self._registry = registry
        self._unfinished = unfinished
        self._report = report
        self._digest = unfinished.layer.digest
        self._url = f"{registry.path}/blobs/{self._digest}"
        self._looked = (0.0, 0)  # when and at how many bytes `_slow` was asked last
        self.moved = 0

    def run(self) -> None:
        """Bring what is missing, and check the digest of the whole; `RegistryError` where it is
        another: then what came is removed."""
        unfinished = self._unfinished
        unfinished.resume()
        open_parts = [part for part in unfinished.parts if part.left]
        if len(open_parts) > 1 and not self._has_ranges():
            unfinished.join()
            open_parts = [part for part in unfinished.parts if part.left]
        tasks = [bound(self._fetch, part) for part in open_parts]
        self._tell()
        self._looked = (time.monotonic(), unfinished.done)
        try:
            crew.run(tasks, STREAMS, self._registry.wire.stop, self._tick, self._slow)
        finally:
            # A thread that waits for a silent server will not come to do it.
            for part in unfinished.parts:
                unfinished.note(part)
        while self._tick():
            pass
        actual = unfinished.digest()
        if actual != self._digest:
            unfinished.remove()
            raise RegistryError(
                f"{self._registry.name.host}: digest mismatch, the file must be downloaded again: "
                f"want {self._digest}, got {actual}"
            )
        unfinished.sync()

    def _tick(self) -> bool:
        """Hash some of what has come; whether there is more of that."""
        more = self._unfinished.hash_some(_HASHED_AT_ONCE)
        self._tell()
        return more

    def _slow(self) -> bool:
        """Whether so little came of late that another stream may bring more. Of a fast link one
        stream is enough: what comes in order is hashed while it comes."""
        now, done = time.monotonic(), self._unfinished.done
        seconds, come = now - self._looked[0], done - self._looked[1]
        if seconds < crew.TICK:
            return False
        self._looked = (now, done)
        return come < ENOUGH * seconds

    def _tell(self) -> None:
        size = self._unfinished.layer.size
        self._report(Step(f"pulling {title(self._digest)}", self._unfinished.done, size))

    def _has_ranges(self) -> bool:
        """Whether the server sends parts of a blob."""

        def attempt() -> bool:
            with self._registry.follow(self._url, {"Range": "bytes=0-0"}) as reply:
                self._check(reply)
                return reply.status_code == 206

        return self._registry.wire.patiently(self._what, attempt)

    @property
    def _what(self) -> str:
        return f"{self._registry.name.host}: blob {title(self._digest)}"

    def _fetch(self, part: Part) -> None:
        self._registry.wire.patiently(self._what, lambda: self._fetch_once(part))

    def _fetch_once(self, part: Part) -> None:
        """Write what one answer brings; `Again` where it ends early, with how much it brought."""
        first, last = part.position, part.offset + part.size - 1
        before = part.completed
        whole = first == 0 and part.size == self._unfinished.layer.size
        headers = {} if whole else {"Range": f"bytes={first}-{last}"}
        try:
            with self._registry.follow(self._url, headers) as reply:
                self._check(reply)
                self._take(part, reply, self._skipped(reply, first))
        except Again as error:
            error.moved = part.completed - before
            raise
        if part.left:
            raise Again(f"ended after {part.position} bytes", 0.0, part.completed - before)

    def _check(self, reply: httpx2.Response) -> None:
        status = reply.status_code
        if status in (200, 206):
            return
        said = reason(body_of(reply))
        text = f"{status}: {said}" if said else f"{status}"
        # An address of storage is good for a while only: the next try is given a new one.
        elsewhere = origin(str(reply.url)) != origin(self._registry.base)
        if status in PASSING or (status in (401, 403) and elsewhere):
            raise Again(text, retry_after(reply))
        if status == 404:
            text += ": the manifest names it, the registry has it not: push the model there again"
        raise RegistryError(f"{self._what}: {text}")

    def _skipped(self, reply: httpx2.Response, first: int) -> int:
        """Bytes of the answer that come before those that were asked for."""
        size = self._unfinished.layer.size
        if reply.status_code == 206:
            match = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
            if not match or int(match[1]) != first or match[3] not in ("*", str(size)):
                told = reply.headers.get("Content-Range", "")[:80]
                raise RegistryError(
                    f"{self._what}: bytes from {first} of {size} were asked for, the server sends "
                    f"{told!r}"
                )
            return 0
        length = reply.headers.get("Content-Length", str(size))
        if length != str(size):
            raise RegistryError(
                f"{self._what}: the server has {length[:20]} bytes, the manifest says {size}"
            )
        return first

    def _take(self, part: Part, reply: httpx2.Response, skip: int) -> None:
        stop = self._registry.wire.stop
        for data in bodies.pieces(reply, self._registry.wire.patience.stall):
            if stop.is_set():
                raise Stopped
            view = data[skip:]
            skip -= len(data) - len(view)
            view = view[: part.left]
            if view:
                with disk_errors(self._unfinished.path.parent):
                    self._unfinished.write(part, view)
                self.moved += len(view)
            if not part.left:
                return
