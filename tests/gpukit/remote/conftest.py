"""A registry that can be told to misbehave, a store, and a client in a hurry."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.registry import Server, serve

from gpukit import Store
from gpukit.remote import bodies, partial, upload, wire
from gpukit.remote.wire import Patience


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as it:
        yield it


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Somebody else's store."""
    return Store(tmp_path / "other")


@pytest.fixture(autouse=True)
def hurry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, short waits, bodies that are soon large, a home folder and a cache of the
    test's own, and no proxies."""
    monkeypatch.setattr(wire, "PATIENCE", Patience(tries=4, first=0.01, most=0.05, stall=0.5))
    for module in (partial, upload):
        monkeypatch.setattr(module, "part_size", lambda size: 100_000)
    monkeypatch.setattr(bodies, "LARGE", 50_000)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
