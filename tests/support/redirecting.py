"""A registry that sends bytes elsewhere, as Ollama's does, and the storage behind it: a process.

    python redirecting.py FOLDER

The registry (`/v2/`) answers an upload's parts and a blob's GET with a redirect to the storage
(`/storage/`, at `localhost`, which is another host than 127.0.0.1). That writes parts to their
places in a file and sends files by the kernel; like object storage it hashes nothing. FOLDER/port
appears when it listens.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = 1 << 18
_ROUTE = re.compile(r"/v2/([\w-]+/[\w.-]+)/(blobs/uploads|blobs|manifests)/([\w:.-]*)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def _any(self) -> None:
        address = urlsplit(self.path)
        if address.path.startswith("/storage/"):
            self._storage(self.server.folder / address.path.rpartition("/")[2], address.query)
        elif (match := _ROUTE.fullmatch(address.path)) is None:
            self._answer(200 if address.path == "/v2/" else 404)
        elif match[2] == "blobs/uploads":
            self._upload(f"/v2/{match[1]}/blobs/uploads/", match[3], parse_qs(address.query))
        elif match[2] == "blobs":
            self._blob(match[3])
        else:
            self._manifest(self.server.folder / match[1].replace("/", "+"))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _any

    def handle_expect_100(self) -> bool:
        """A part's address is told before its bytes are sent."""
        return self.command == "PATCH" or super().handle_expect_100()

    def _upload(self, root: str, name: str, query: dict[str, list[str]]) -> None:
        if self.command == "POST":
            told = {"Docker-Upload-Location": root + os.urandom(8).hex()}
            self._answer(202, told)
        elif self.command == "PATCH":
            first = self.headers["Content-Range"].partition("-")[0]
            # What the client has sent before it saw this answer is not read.
            self.close_connection = True
            told = {"Docker-Upload-Location": root + name, "Connection": "close"}
            self._answer(307, told | {"Location": f"{self._elsewhere}{name}?first={first}"})
        else:
            (self.server.folder / name).rename(self.server.folder / query["digest"][0])
            self._answer(201)

    def _blob(self, digest: str) -> None:
        path = self.server.folder / digest
        if not path.exists():
            self._answer(404)
        elif self.command == "HEAD":
            self._answer(200, length=path.stat().st_size)
        else:
            self._answer(307, {"Location": self._elsewhere + digest})

    @property
    def _elsewhere(self) -> str:
        return f"http://localhost:{self.server.server_port}/storage/"

    def _manifest(self, path: Path) -> None:
        if self.command == "PUT":
            path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(201)
        elif path.exists():
            self._answer(200, length=path.stat().st_size)
            self.wfile.write(path.read_bytes())
        else:
            self._answer(404)

    def _storage(self, path: Path, query: str) -> None:
        if self.command == "PUT":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            self._receive(fd, int(parse_qs(query)["first"][0]))
            self._answer(200)
            return
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        first, end, told = 0, size, {}
        if asked := _RANGE.fullmatch(self.headers["Range"] or ""):
            first, end = int(asked[1]), min(int(asked[2]) + 1, size)
            told = {"Content-Range": f"bytes {first}-{end - 1}/{size}"}
        self._answer(206 if asked else 200, told, end - first)
        try:
            while first < end:
                first += os.sendfile(self.connection.fileno(), fd, first, end - first)
        finally:
            os.close(fd)

    def _receive(self, fd: int, at: int) -> None:
        left, buffer = int(self.headers["Content-Length"]), memoryview(bytearray(PIECE))
        try:
            while left:
                count = self.rfile.readinto(buffer[: min(left, PIECE)])
                if not count:
                    raise ConnectionError("the client has gone")
                done = 0
                while done < count:
                    done += os.pwrite(fd, buffer[done:count], at + done)
                at, left = at + count, left - count
        finally:
            os.close(fd)

    def _answer(self, status: int, told: dict[str, str] | None = None, length: int = 0) -> None:
        self.send_response(status)
        for key, value in {**(told or {}), "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_arguments: object) -> None:
        pass  # of clients that have gone


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Run one with its data in `folder` until the block ends; its address, and its process in
    `folder/pid`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        command = [sys.executable, __file__, str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    (folder / "pid").write_text(str(process.pid))
    try:
        deadline = time.monotonic() + 20
        while not (folder / "port").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no storage: {(folder / 'log').read_text()}")
            time.sleep(0.02)
        yield f"127.0.0.1:{(folder / 'port').read_text()}"
    finally:
        process.kill()
        process.wait()


def main(folder: Path) -> None:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.folder = folder  # type: ignore[attr-defined]
        draft = folder / "port-draft"
        draft.write_text(str(server.server_port))
        draft.rename(folder / "port")
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
