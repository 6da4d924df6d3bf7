"""A registry of models on this machine that can be told to misbehave."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

EMPTY = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
PATH = re.compile(r"/v2/([\w-]+/[\w.-]+)/(blobs|manifests)/(.*)")


@dataclass
class Fault:
    """What goes wrong with one request: `cut` after so many bytes, `stall`, answer `status`, send
    `lie` instead of what was asked for, or `lose` the upload that it is about."""

    cut: int | None = None
    stall: bool = False
    status: int = 0
    lie: bytes | None = None
    lose: bool = False


@dataclass
class Asked:
    """One request: method, path with query, host that it was sent to, its `Authorization`, and its
    range."""

    method: str
    path: str
    host: str
    authorization: str
    range: str


@dataclass
class Server:
    """Blobs by digest, which repositories have each, and manifests by repository and tag.

    `faults` holds, for `METHOD kind` (blobs, manifests, uploads, storage, token), what the next
    requests of that kind meet. `auth` is "", "basic" or "token"; `storage` sends bytes by another
    host (`localhost`, where this one is 127.0.0.1), and `joins` names the addresses of uploads as
    Ollama's does. Without `expects` no body may wait for a word. `wasted` counts bytes that came
    although they were to go to storage.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    manifests: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    auth: str = ""
    realm: str = ""
    storage: bool = False
    joins: bool = False
    ranges: bool = True
    asked: list[Asked] = field(default_factory=list)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    direct: dict[str, bytearray] = field(default_factory=dict)
    etags: list[str] = field(default_factory=list)
    ranges_sent: list[str] = field(default_factory=list)
    wasted: int = 0
    expects: bool = True
    token: str = "tok-1"
    host: str = ""
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    freed: threading.Event = field(default_factory=threading.Event)

    def add(self, data: bytes, repository: str = "me/tiny") -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        self.owners[digest].add(repository)
        return digest

    def count(self, method: str, part: str) -> int:
        """How many requests of this method had `part` in their path."""
        return sum(each.method == method and part in each.path for each in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def _any(self) -> None:
        it: Server = self.server.it
        headers = self.headers
        asked = Asked(
            self.command, self.path, (headers["Host"] or "").rpartition(":")[0],
            headers["Authorization"] or "", headers["Range"] or "",
        )  # fmt: skip
        kind = self._kind()
        with it.lock:
            it.asked.append(asked)
            faults = it.faults[f"{self.command} {kind}"]
            self.fault = faults.pop(0) if faults else Fault()
        if self.fault.stall:
            it.freed.wait(20)
            self.close_connection = True
        elif self.fault.status:
            self._body()
            self._send(self.fault.status, b'{"errors":[{"message":"no luck"}]}')
        elif kind == "token":
            self._token(it)
        elif kind == "storage":
            self._storage(it)
        elif self._allowed(it):
            self._route(it, kind)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _any

    def _kind(self) -> str:
        path = urlsplit(self.path).path
        for kind in ("token", "storage", "uploads", "manifests", "blobs"):
            if f"/{kind}" in path:
                return kind
        return "other"

    def _allowed(self, it: Server) -> bool:
        sent = self.headers["Authorization"] or ""
        if not it.auth:
            return True
        if it.auth == "basic" and sent == f"Basic {base64.b64encode(b'ann:secret').decode()}":
            return True
        if it.auth == "token" and sent == f"Bearer {it.token}":
            return True
        realm = it.realm or f"http://{it.host}/token"
        scope = "repository:me/tiny:pull,push repository:me/other:pull"
        told = 'Basic realm="here"'
        if it.auth == "token":
            told = f'Bearer realm="{realm}",service="ollama test",scope="{scope}"'
        self._body()
        self._send(401, b"", {"WWW-Authenticate": told})
        return False

    def _token(self, it: Server) -> None:
        """Checks the signature as Ollama's server does, byte by byte."""
        query = parse_qsl(urlsplit(self.path).query)
        again = f"{urlsplit(self.path).path}?{urlencode(sorted(query, key=lambda pair: pair[0]))}"
        public, _, signature = (self.headers["Authorization"] or "").partition(":")
        names = sorted({name for name, _ in query})
        if again != self.path or names != ["nonce", "scope", "service", "ts"] or not signature:
            self._send(403, b'{"error":"unsigned"}')
            return
        key = load_ssh_public_key(f"ssh-ed25519 {public}".encode())
        assert isinstance(key, Ed25519PublicKey)
        key.verify(base64.b64decode(signature), f"GET,http://{it.host}{self.path},{EMPTY}".encode())
        self._send(200, json.dumps({"token": it.token}).encode())

    def _storage(self, it: Server) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        if self.command == "PUT":
            upload, _, first = name.partition("@")
            if (data := self._body()) is None:
                return
            with it.lock:
                whole = it.direct[upload]
                whole.extend(b"\0" * (int(first) + len(data) - len(whole)))
                whole[int(first) : int(first) + len(data)] = data
            self._send(200)
            return
        self._blob(it, it.blobs[name])

    def _route(self, it: Server, kind: str) -> None:
        match = PATH.fullmatch(urlsplit(self.path).path)
        if not match:
            self._send(200 if self.path == "/v2/" else 404)
            return
        repository, _, rest = match.groups()
        if kind == "uploads":
            self._upload(it, repository, rest)
        elif kind == "blobs":
            self._blobs(it, repository, rest)
        elif self.command == "PUT":
            data = self._body()
            if data is not None:
                it.manifests[f"{repository}:{rest}"] = data
                self._send(201)
        elif (data := it.manifests.get(f"{repository}:{rest}")) is None:
            self._send(404, b'{"errors":[{"message":"manifest unknown"}]}')
        else:
            self._send(200, data)

    def _blobs(self, it: Server, repository: str, digest: str) -> None:
        if repository not in it.owners[digest]:
            self._send(404)
        elif self.command == "HEAD":
            self._send(200, it.blobs[digest])
        elif it.storage:
            address = f"http://localhost:{it.port}/storage/{digest}?signed=yes"
            self._send(307, b"", {"Location": address})
        else:
            self._blob(it, it.blobs[digest])

    def _blob(self, it: Server, data: bytes) -> None:
        if self.fault.lie is not None:
            data = self.fault.lie
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if not asked or not it.ranges:
            self._send(200, data)
            return
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        told = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206, data[first : last + 1], told)

    def _upload(self, it: Server, repository: str, rest: str) -> None:
        name = rest.partition("/")[2]
        query = parse_qs(urlsplit(self.path).query)
        if self.command == "POST":
            self._body()
            self._begin(it, repository, query)
            return
        if self.fault.lose:
            it.uploads.pop(name, None)
        if name not in it.uploads:
            self._body()
            self._send(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"unknown"}]}')
            return
        address = f"/v2/{repository}/blobs/uploads/{name}?state={len(it.asked)}"
        place = {"Docker-Upload-Location" if it.joins else "Location": address}
        if self.command == "GET":
            self._send(204, b"", {**place, "Range": f"0-{max(len(it.uploads[name]) - 1, 0)}"})
        elif self.command == "PATCH":
            self._patch(it, name, place)
        else:
            self._body()
            self._commit(it, repository, name, query)

    def _begin(self, it: Server, repository: str, query: dict[str, list[str]]) -> None:
        digest, source = query.get("mount", [""])[0], query.get("from", [""])[0]
        if digest and source in it.owners[digest]:
            it.owners[digest].add(repository)
            self._send(201)
            return
        with it.lock:
            name = f"up{len(it.uploads)}"
            it.uploads[name] = bytearray()
            it.direct[name] = bytearray()
        address = f"http://{it.host}/v2/{repository}/blobs/uploads/{name}"
        self._send(202, b"", {"Docker-Upload-Location" if it.joins else "Location": address})

    def _patch(self, it: Server, name: str, place: dict[str, str]) -> None:
        it.ranges_sent.append(self.headers["Content-Range"])
        first, last = map(int, self.headers["Content-Range"].split("-"))
        if it.storage:
            self._redirect(it, f"{name}@{first}", next(iter(place.values())))
            return
        if first != len(it.uploads[name]):
            self._body()
            self._send(416)
            return
        data = self._body(it.uploads[name])
        if data is not None:
            assert len(data) == last - first + 1
            self._send(202, b"", place)

    def _redirect(self, it: Server, part: str, following: str) -> None:
        """Tell where a part is to go, of which nothing is wanted here."""
        if self.fault.cut is not None:
            self._cut()
            return
        address = f"http://localhost:{it.port}/storage/{part}"
        told = {"Location": address, "Docker-Upload-Location": following, "Connection": "close"}
        self._send(307, b"", told)
        self.connection.shutdown(socket.SHUT_WR)
        it.wasted += len(self.rfile.read())

    def handle_expect_100(self) -> bool:
        """Storage is told before the body comes."""
        it: Server = self.server.it
        if not it.expects:
            self._send(417)
            return False
        return it.storage or super().handle_expect_100()

    def _commit(self, it: Server, repository: str, name: str, query: dict[str, list[str]]) -> None:
        data = bytes(it.direct[name] if it.storage else it.uploads[name])
        it.etags += query.get("etag", [])
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != query["digest"][0]:
            self._send(400, b'{"errors":[{"message":"provided digest did not match"}]}')
            return
        it.add(data, repository)
        self._send(201)

    def _body(self, into: bytearray | None = None) -> bytes | None:
        """What was sent, kept in `into` as it comes; None where the connection was cut."""
        left, kept = int(self.headers["Content-Length"] or 0), bytearray()
        most = left if self.fault.cut is None else min(self.fault.cut, left)
        while len(kept) < most and (part := self.rfile.read(min(1 << 16, most - len(kept)))):
            kept += part
            if into is not None:
                into += part
        if self.fault.cut is not None or len(kept) < left:
            self._cut()
            return None
        return bytes(kept)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        length = 0 if status == 204 else len(data)
        for key, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.cut is not None and self.command == "GET":
            self.wfile.write(data[: self.fault.cut])
            self._cut()
            return
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_arguments: object) -> None:
        pass  # of clients that have gone


@contextmanager
def serve(it: Server | None = None) -> Iterator[Server]:
    """Run a registry until the block ends; `host` is its address in names."""
    it = it or Server()
    with _Quiet(("127.0.0.1", 0), _Handler) as server:
        server.it = it  # type: ignore[attr-defined]
        it.port = server.server_port
        it.host = f"127.0.0.1:{it.port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield it
        finally:
            it.freed.set()
            server.shutdown()
            thread.join()
