"""A small imitation of the Hugging Face hub, on this machine, for tests."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by id, each with its files; `token` is needed for those in `private`.

    `asked` lists what was requested: method, path, and the token that came with it.
    """

    repos: dict[str, Mapping[str, bytes]]
    private: tuple[str, ...] = ()
    gated: tuple[str, ...] = ()
    token: str = "hf_secret"
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """The names of the files that were sent, in order."""
        return [
            path.split(f"/{COMMIT}/")[-1]
            for how, path, _ in self.asked
            if how == "GET" and "/resolve/" in path
        ]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run `hub` until the block ends; `url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            hub.asked.append((self.command, path, token))
            if path.startswith("/api/models/"):
                self._info(path.removeprefix("/api/models/"), token)
            else:
                self._file(path.strip("/"), token, body)

        def _repo(self, name: str, token: str | None) -> Mapping[str, bytes] | None:
            known = hub.repos.get(name)
            if name in hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
                return None
            if known is None or (name in hub.private and token != hub.token):
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return None
            return known

        def _info(self, path: str, token: str | None) -> None:
            name, _, revision = path.partition("/revision/")
            if (files := self._repo(name, token)) is None:
                return
            if revision not in ("main", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": key, "size": len(data)} for key, data in files.items()]
            info: dict[str, Any] = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _file(self, path: str, token: str | None, body: bool) -> None:
            name, _, rest = path.partition("/resolve/")
            if (files := self._repo(name, token)) is None:
                return
            data = files.get(rest.partition("/")[2])
            if data is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            etag = hashlib.sha256(data).hexdigest()
            self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, body)

        def _send(
            self, status: int, data: bytes, headers: Mapping[str, str], body: bool = True
        ) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
