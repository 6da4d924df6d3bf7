"""push, pull and key as a user calls them."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command_line import gpukit, listening
from support.registry import Fault, Server, serve
from support.stores import add

from gpukit import Store
from gpukit.store.blobs import digest_of

WEIGHTS = bytes(range(256)) * 4000
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as it:
        yield it


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "GPUKIT_MODELS": str(tmp_path / "models"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1,localhost",
    }


@pytest.fixture
def run(variables: dict[str, str]) -> Run:
    return lambda *words: gpukit(*words, **variables)


def test_push_and_pull(server: Server, run: Run, tmp_path: Path) -> None:
    add(Store(tmp_path / "models"), "tiny:q4", model=WEIGHTS)
    name = f"{server.host}/me/tiny:q4"
    pushed = run("push", "tiny:q4", name, "--insecure")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout == f"pushed '{name}': 1.0 MB of 1.0 MB moved\n"
    assert "pushing manifest\n" in pushed.stderr
    pulled = run("pull", name, "--insecure", "--json", "--quiet")
    assert json.loads(pulled.stdout) == {
        "name": name, "size": len(WEIGHTS) + 24, "moved": 0, "mounted": 0, "url": "",
        "digest": digest_of(server.manifests["me/tiny:q4"]),
    }  # fmt: skip
    assert pulled.stderr == ""


def test_faults_are_one_line(server: Server, run: Run) -> None:
    for words, code, text in (
        (["pull", f"{server.host}/me/tiny"], 1, "--insecure admits plain http"),
        (["pull", f"http://{server.host}/me/tiny"], 2, "insecure protocol http"),
        (["key", "make"], 2, "gpukit key show"),
    ):
        done = run(*words)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith(("Error: ", "pulling manifest\nError: ")), done.stderr
        assert text in done.stderr.splitlines()[-1]
        assert not done.stdout


def test_the_key(run: Run, tmp_path: Path) -> None:
    shown = run("key", "show")
    assert shown.stdout == (tmp_path / ".ollama/id_ed25519.pub").read_text()


def test_a_pull_that_is_told_to_end_goes_on(
    server: Server, run: Run, tmp_path: Path, variables: dict[str, str]
) -> None:
    """SIGINT while the server is silent: it ends at once, and the next pull takes what came."""
    store = Store(tmp_path / "models")
    add(store, f"{server.host}/me/tiny:q4", model=WEIGHTS)
    run("push", f"{server.host}/me/tiny:q4", "--insecure")
    store.remove(f"{server.host}/me/tiny:q4")
    name = f"{server.host}/me/tiny:q4"
    digest = digest_of(WEIGHTS)
    server.blobs[digest], whole = WEIGHTS, server.blobs[digest]
    server.faults["GET blobs"] = [Fault(), Fault(cut=500_000), Fault(stall=True)]
    if digest < digest_of(b'{"model_format":"gguf"}\n'):
        server.faults["GET blobs"].pop(0)
    process = subprocess.Popen(
        [sys.executable, "-m", "gpukit_cli", "pull", name, "--insecure"],
        env=variables | {"PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE, text=True,
        preexec_fn=listening,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while server.faults["GET blobs"] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert not store.names()
    pulled = run("pull", name, "--insecure", "--json")
    assert json.loads(pulled.stdout)["moved"] <= len(whole) + 24 - 400_000
