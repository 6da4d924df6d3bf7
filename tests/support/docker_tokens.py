"""docker-registry behind a token server that checks our signature, both at one address."""

import base64
import datetime
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from support import docker_registry
from support.registry import Server, _Handler, _Quiet


class _Front(_Handler):
    """Tokens as `support.registry` has them; everything else goes to docker-registry."""

    def _route(self, it: Server, kind: str) -> None:
        body = self._body()
        host = self.server.registry
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        self.send_response(reply.status)
        for key, value in reply.getheaders():
            if key.lower() not in ("connection", "transfer-encoding", "date"):
                self.send_header(key, value)
        if reply.getheader("Content-Length") is None and reply.status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(folder: Path, repository: str) -> Iterator[Server]:
    """Run both until the block ends; tokens are for `repository`, whatever is asked for."""
    it = Server()
    folder.mkdir(parents=True)
    with _Quiet(("127.0.0.1", 0), _Front) as front:
        it.port = front.server_port
        it.host = f"127.0.0.1:{it.port}"
        it.token = _token(folder / "cert.pem", repository)
        auth = (
            f"auth: {{token: {{realm: 'http://{it.host}/token', service: here, issuer: us, "
            f"rootcertbundle: {folder / 'cert.pem'}}}}}"
        )
        with docker_registry.serve(folder, auth=auth) as registry:
            front.it = it  # type: ignore[attr-defined]
            front.registry = registry  # type: ignore[attr-defined]
            thread = threading.Thread(target=front.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield it
            finally:
                front.shutdown()
                thread.join()


def _token(path: Path, repository: str) -> str:
    """A token that a registry takes which trusts the certificate that is written to `path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "us")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    certificate = builder.sign(key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    der = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    access = {"type": "repository", "name": repository, "actions": ["pull", "push"]}
    claims = {
        "iss": "us", "aud": "here", "sub": "ann", "jti": "1", "access": [access],
        "nbf": int(time.time()) - 60, "iat": int(time.time()), "exp": int(time.time()) + 3600,
    }  # fmt: skip
    signed = f"{_part({'typ': 'JWT', 'alg': 'ES256', 'x5c': [der]})}.{_part(claims)}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _part(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
