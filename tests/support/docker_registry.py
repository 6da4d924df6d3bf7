"""Debian's docker-registry on this machine."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = "docker-registry"
# `ann`, `secret`, by bcrypt, the only way that it takes.
PASSWORDS = "ann:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


def program() -> str | None:
    """Where it is, if it is there."""
    return shutil.which(PROGRAM)


def skip_without() -> None:
    """Skip the test where it is not installed."""
    if program() is None:
        pytest.skip(f"{PROGRAM} is not installed here (apt-get install {PROGRAM})")


@contextmanager
def serve(folder: Path, *, basic: bool = False, auth: str = "") -> Iterator[str]:
    """Run one with its data in `folder` until the block ends; its address, and its process in
    `folder/pid`. `auth` is a line of its configuration, `basic` one for name and password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "version: 0.1",
        "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: same}}",
    ]
    if basic:
        (folder / "passwords").write_text(PASSWORDS)
        auth = f"auth: {{htpasswd: {{realm: here, path: {folder / 'passwords'}}}}}"
    (folder / "config.yml").write_text("\n".join([*lines, auth]) + "\n")
    command = [program() or PROGRAM, "serve", str(folder / "config.yml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    (folder / "pid").write_text(str(process.pid))
    try:
        _await(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _await(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{PROGRAM} does not answer")
