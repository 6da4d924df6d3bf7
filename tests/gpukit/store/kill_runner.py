"""Kills an action on a store at its n-th step, for every n, and checks what is left each time.

    python kill_runner.py ACTION STORE EXTRA

ACTION names a function below; STORE is the store as it is before. Each trial works on a copy in a
forked child. A step is a call that changes a file (seen by an audit hook) or moves data to the disk
(wrappers around os.write, os.pwrite, os.fsync and the like); the child kills itself before it, and
for writes also in the middle. Prints the numbers of kills, at steps and at moments. Run as a
program of its own so that it can fork: one thread is left when a run has ended.
"""

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gpukit.store import Store, copy, remove, tidy
from gpukit.store.manifest import decode, digest_hex

# What the test puts into every store beforehand; no command of ours may touch it.
FOREIGN = {f"sha256-{'0' * 64}", f"sha256-{'1' * 64}-partial"}

State = dict[str, str]


def create_model(store: Store, extra: Path) -> None:
    from gpukit.recipes.create import create
    from gpukit.store import modelfile

    create(store, "new", modelfile.read(extra / "Modelfile"), QUANTIZE)


def replace_model(store: Store, extra: Path) -> None:
    from gpukit.recipes.create import create
    from gpukit.store import modelfile

    create(store, "old", modelfile.read(extra / "Modelfile"), QUANTIZE)


def remove_model(store: Store, extra: Path) -> None:
    if store.has(store.find("old")):
        remove(store, "old")


def copy_over(store: Store, extra: Path) -> None:
    copy(store, "other", "old")


QUANTIZE = os.environ.get("KILL_QUANTIZE") or None
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.chmod",
         "os.truncate", "os.link", "shutil.rmtree", "fcntl.flock", "os.listdir"}  # fmt: skip


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def arm(limit: int, root: Path) -> None:
    """Let the process kill itself at step `limit` below `root`."""
    count, inside = 0, str(root)

    def step() -> bool:
        nonlocal count
        count += 1
        return count == limit

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        ours = event == "fcntl.flock" or str(arguments[0]).startswith(inside)
        if event in STEPS and ours and step():
            die()

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def write(handle: int, data: Any, *rest: Any) -> Any:
            if step():
                die()
            if name in ("write", "pwrite") and len(data) > 1 and step():
                real(handle, data[: len(data) // 2], *rest)
                die()
            return real(handle, data, *rest)

        def sync(*arguments: Any) -> Any:
            if step():
                die()
            return real(*arguments)

        setattr(os, name, sync if name in ("fsync", "ftruncate") else write)

    for name in ("write", "pwrite", "pwritev", "fsync", "ftruncate"):
        wrap(name)
    sys.addaudithook(hook)


def in_child(work: Callable[[], None], patience: float | None = None) -> int:
    """Run `work` in a fork, killed after `patience` seconds; its exit status, or the signal that
    ended it, negative."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def listed(store: Store) -> State:
    """Name to manifest digest, once every blob that a manifest names was found whole."""
    found = {}
    for name in store.names():
        data = store.manifest_bytes(name)
        manifest = decode(data, str(name))
        for layer in manifest.blobs:
            blob = (store.blobs / f"sha256-{digest_hex(layer.digest)}").read_bytes()
            assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == layer.digest, layer
            assert len(blob) == layer.size
        found[str(name)] = hashlib.sha256(data).hexdigest()
    return found


def check_clean(store: Store) -> None:
    """Nothing in the store but manifests, their blobs, and what was foreign to begin with."""
    wanted = {f"sha256-{digest_hex(digest)}" for digest in store.mentioned()}
    there = {path.name for path in store.blobs.iterdir()}
    assert there == wanted | FOREIGN, (there - wanted - FOREIGN, wanted - there)
    assert [path.name for path in store.scratch.iterdir()] == ["lock"]
    manifests = {store.manifest_path(name) for name in store.names()}
    folders = {parent for path in manifests for parent in path.parents}
    for path in store.manifests.rglob("*"):
        assert path in manifests or path in folders, path
    assert {path.name for path in store.root.iterdir()} == {"blobs", "manifests", ".gpukit"}


def trial(
    action: str, template: Path, extra: Path, after: State, limit: int, patience: float | None
) -> int:
    """One kill, at step `limit` or after `patience` seconds; the exit status of the child."""
    root = template.with_name(f"{template.name}-trial")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    store = Store(root)
    before = listed(store)

    def run() -> None:
        if patience is None:
            arm(limit, root)
        globals()[action](store, extra)

    status = in_child(run, patience)
    left = listed(store)
    assert left in (before, after), left
    # What is not to be killed needs no child, which takes longer than the action.
    tidy(store)
    assert listed(store) == left
    check_clean(store)
    globals()[action](store, extra)
    check_clean(store)
    assert listed(store) == after
    return status


def main() -> None:
    """`KILL_STRIDE=n` kills at every n-th step only, `KILL_RANDOM=n` at n moments, too."""
    action, template, extra = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    root = template.with_name(f"{template.name}-whole")
    shutil.copytree(template, root)
    # Whatever the action loads is loaded by this run, before the first fork: it is no step of it.
    globals()[action](Store(root), extra)
    gc.collect()
    gc.freeze()  # looking at what is loaded would copy its pages in each child
    shutil.rmtree(root)
    shutil.copytree(template, root)
    began = time.monotonic()
    assert in_child(lambda: globals()[action](Store(root), extra)) == 0
    seconds = time.monotonic() - began
    after = listed(Store(root))
    kills = 0
    for step in range(1, 1_000_000, int(os.environ.get("KILL_STRIDE", "1"))):
        status = trial(action, template, extra, after, step, None)
        if status == 0:
            break
        assert status == -signal.SIGKILL, (step, status)
        kills += 1
    moments, wanted, draw = 0, int(os.environ.get("KILL_RANDOM", "0")), random.Random(2)
    # One that came too late shortens the next ones: the first run may have been a slow one.
    for _ in range(10 * wanted):
        patience = draw.uniform(0, seconds)
        if trial(action, template, extra, after, 0, patience) != -signal.SIGKILL:
            seconds *= 0.8
        elif (moments := moments + 1) == wanted:
            break
    sys.stdout.write(json.dumps([kills, moments]) + "\n")


if __name__ == "__main__":
    main()
