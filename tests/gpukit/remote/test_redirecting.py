"""A registry that sends bytes to storage, a process of its own, as benchmarks talk with."""

from pathlib import Path

from support import redirecting
from support.stores import add

from gpukit import Store
from gpukit.store.blobs import digest_of

WEIGHTS = bytes(range(256)) * 1400 + b"end"  # four parts of a hundred thousand bytes


def test_push_and_pull(tmp_path: Path, store: Store, other: Store) -> None:
    folder = tmp_path / "server"
    with redirecting.serve(folder) as host:
        name = f"{host}/me/tiny:q4"
        add(store, name, model=WEIGHTS, template=b"{{ .Prompt }}")
        assert store.push(name, insecure=True).moved == len(WEIGHTS) + 13 + 24
        assert (folder / digest_of(WEIGHTS)).read_bytes() == WEIGHTS
        assert store.push(name, insecure=True).moved == 0
        assert other.pull(name, insecure=True).moved == len(WEIGHTS) + 13 + 24
    assert other.manifest_bytes(other.existing(name)) == store.manifest_bytes(store.existing(name))
    assert (other.blobs / digest_of(WEIGHTS).replace(":", "-")).read_bytes() == WEIGHTS
