"""The part of the Hugging Face hub that takes files, on this machine, for tests."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Uploads:
    """Repositories by id with their files; `token` is needed to write. `stored` are objects by
    their sha256, `asked` the requests: method, path, and the token that came with it."""

    token: str = "hf_secret"
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def _any(self) -> None:
        it: Uploads = self.server.it
        path = unquote(urlsplit(self.path).path)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        it.asked.append((self.command, path, token))
        data = self._body()
        if path.startswith("/storage/"):
            it.stored[path.rpartition("/")[2]] = data
            self._send(200, {})
        elif token != it.token:
            self._send(403, {"error": "no"})
        elif path == "/api/repos/create":
            self._create(it, json.loads(data))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(it, json.loads(data))
        elif "/preupload/" in path:
            files = [
                {"path": each["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if each["path"].endswith(".gguf") else "regular"}
                for each in json.loads(data)["files"]
            ]  # fmt: skip
            self._send(200, {"files": files})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif "/commit/" in path:
            self._commit(it, path.removeprefix("/api/models/").partition("/commit/")[0], data)
        elif "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            known = rest.partition("/")[2] in it.repos.get(repo, {})
            self._send(200 if known else 404, {})
        else:
            self._send(404, {})

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _create(self, it: Uploads, asked: Any) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        it.private.setdefault(repo, asked.get("private", asked.get("visibility") == "private"))
        it.repos.setdefault(repo, {})
        self._send(200, {"url": f"{it.url}/{repo}", "id": repo, "name": repo})

    def _batch(self, it: Uploads, asked: Any) -> None:
        objects = []
        for each in asked["objects"]:
            actions = {"upload": {"href": f"{it.url}/storage/{each['oid']}"}}
            have = {} if each["oid"] in it.stored else {"actions": actions}
            objects.append({**each, **have})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, it: Uploads, repo: str, data: bytes) -> None:
        for line in data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                it.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                it.repos[repo][value["path"]] = it.stored[value["oid"]]
        self._send(200, {"commitUrl": f"{it.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT,
                         "success": True, "hookOutput": ""})  # fmt: skip

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        data = bytearray()
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(data)

    def _send(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        for key, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
            ("X-Repo-Commit", COMMIT),
            ("ETag", f'"{hashlib.sha256(data).hexdigest()}"'),
        ):
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def serve(it: Uploads | None = None) -> Iterator[Uploads]:
    """Run it until the block ends; `url` is its address."""
    it = it or Uploads()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.it = it  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        it.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield it
        finally:
            server.shutdown()
            thread.join()
