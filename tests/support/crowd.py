"""Many processes that change one store at once, and what has to be true all the while.

They are forks of a process in which everything is imported, and so is the registry that they pull
from: this process must have one thread only.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.registry import Server, serve
from support.stores import add

import gpukit.recipes.create
import gpukit.remote.pull
import gpukit.remote.push
from gpukit import Modelfile, NotFoundError, Store, StoreError
from gpukit.formats.gguf_fields import TensorSpec, string
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.store.blobs import digest_of
from gpukit.store.manifest import digest_hex

NAMES = ("a", "b", "c", "team/d:q4", "e")
TEXTS = ("MIT", "Apache", "Be brief.")
WEIGHTS = 3
# Seconds instead of an hour, so that much is collected while others work.
GRACE = 0.3

# Forks need not import them.
assert gpukit.recipes.create
assert gpukit.remote.pull
assert gpukit.remote.push


@dataclass
class Crowd:
    """What all of them did, by action and how it ended, and what was wrong."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    kills: int = 0
    models: int = 0


def gather(
    folder: Path, processes: int, seconds: float, seed: int, kill_every: float = 0.0
) -> Crowd:
    """Let so many processes work for so long on a store in `folder`; every `kill_every` seconds one
    is killed, and another takes its place."""
    for number in range(WEIGHTS):
        _write_gguf(folder / f"{number}.gguf", number)
    crowd, chance = Crowd(), random.Random(seed)
    host, registry = _fork_registry(folder)
    end = time.monotonic() + seconds
    numbers = itertools.count()

    def start() -> tuple[int, Path]:
        worker = Worker(folder, host, chance.randrange(1 << 32))
        told = folder / f"told-{next(numbers)}.json"
        return _fork(lambda: worker.work(end, told)), told

    try:
        workers = [start() for _ in range(processes)]
        while kill_every and time.monotonic() + kill_every < end:
            time.sleep(kill_every)
            victim = chance.randrange(processes)
            _end(workers[victim][0])
            crowd.kills += 1
            workers[victim] = start()
        for worker in workers:
            _note(crowd, *worker)
    finally:
        _end(registry)
    _look(crowd, Store(folder / "models"))
    return crowd


def _fork(work: Callable[[], object]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _fork_registry(folder: Path) -> tuple[str, int]:
    """Run a registry with the models; its address and its process."""
    reader, writer = os.pipe()

    def work() -> None:
        with serve() as server:
            for number in range(WEIGHTS):
                theirs = Store(folder / "theirs")
                _publish(server, theirs, folder / f"{number}.gguf", number)
            os.write(writer, server.host.encode())
            while os.getppid() == parent:
                time.sleep(0.5)

    parent = os.getpid()
    child = _fork(work)
    os.close(writer)
    host = os.read(reader, 100).decode()
    os.close(reader)
    return host, child


def _note(crowd: Crowd, child: int, told: Path) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        crowd.faults.append(f"a process ended with {os.waitstatus_to_exitcode(status)}")
        return
    found = json.loads(told.read_text())
    crowd.done.update(found["done"])
    crowd.faults += found["faults"]


def _look(crowd: Crowd, store: Store) -> None:
    """When all have ended: every model is whole, and there is nothing else."""
    models = store.verify()
    crowd.models = len(models)
    crowd.faults += [line for model in models for line in model.problems]
    time.sleep(GRACE)
    store.gc(grace=GRACE)
    wanted = {f"sha256-{digest_hex(digest)}" for digest in store.mentioned()}
    there = {path.name for path in store.blobs.iterdir()}
    crowd.faults += [f"{name} is missing" for name in sorted(wanted - there)]
    crowd.faults += [f"{name} is nobody's" for name in sorted(there - wanted)]
    left = {path.name for path in store.scratch.iterdir()} - {"lock"}
    crowd.faults += [f".gpukit/{name} is left" for name in sorted(left)]
    stray = [path for path in store.manifests.rglob("*") if path.name.startswith(".gpukit")]
    crowd.faults += [f"{path} is left" for path in stray]


def _write_gguf(path: Path, number: int) -> None:
    spec = TensorSpec("token_embd.weight", (32, 2000 * (number + 1)), "F16")
    with GGUFWriter(path, [string("general.architecture", "llama")], [spec]) as writer:
        writer.write(0, bytes([number]) * spec.nbytes)


def _publish(server: Server, theirs: Store, weights: Path, number: int) -> None:
    """A model at the registry that shares blobs with those that are made here."""
    name = f"{server.host}/me/m{number}:q4"
    add(theirs, name, TEXTS[number], model=weights.read_bytes())
    found = theirs.existing(name)
    server.manifests[f"me/m{number}:q4"] = theirs.manifest_bytes(found)
    for layer in theirs.manifest(found).blobs:
        path = theirs.blobs / layer.digest.replace(":", "-")
        assert server.add(path.read_bytes(), f"me/m{number}") == layer.digest


class Worker:
    """One process of the crowd."""

    def __init__(self, folder: Path, host: str, seed: int) -> None:
        self.folder = folder
        self.host = host
        self.chance = random.Random(seed)
        self.store = Store(folder / "models")
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []

    def work(self, end: float, told: Path) -> None:
        """Do random things until the time is over; then write what was done."""
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")  # notes about unfinished pushes
        actions: tuple[Callable[[], object], ...] = (
            self.create, self.create, self.inherit, self.copy, self.remove, self.remove,
            self.collect, self.pull, self.push, self.check,
        )  # fmt: skip
        while time.monotonic() < end:
            action = self.chance.choice(actions)
            try:
                action()
                self.done[action.__name__] += 1
            except NotFoundError as error:
                if action == self.create:  # of a file
                    self.faults.append(f"create: {error}")
                self.done[f"{action.__name__} of what has gone"] += 1
            except StoreError as error:
                self._refused(action.__name__, error)
            except Exception as error:
                self.faults.append(f"{action.__name__}: {type(error).__name__}: {error}")
        told.write_text(json.dumps({"done": self.done, "faults": self.faults[:20]}))

    def _refused(self, action: str, error: StoreError) -> None:
        """A base may lose its blobs between two looks at it, and only then."""
        if action == "inherit" and " is missing (" in str(error):
            self.done[f"{action} of what has gone"] += 1
        else:
            self.faults.append(f"{action}: {error}")

    def _name(self) -> str:
        return self.chance.choice(NAMES)

    def create(self) -> None:
        weights = self.folder / f"{self.chance.randrange(WEIGHTS)}.gguf"
        text = self.chance.choice((*TEXTS, str(self.chance.random())))
        self.store.create(self._name(), Modelfile(source=str(weights), licenses=(text,)))

    def inherit(self) -> None:
        base = self.store.existing(self._name()).display
        self.store.create(self._name(), Modelfile(source=base, system=self.chance.choice(TEXTS)))

    def copy(self) -> None:
        self.store.copy(*self.chance.sample(NAMES, 2))

    def remove(self) -> None:
        names = [name.display for name in self.store.names()]
        self.store.remove(self.chance.choice([*names, self._name()]))

    def collect(self) -> None:
        self.store.gc(grace=GRACE)

    def pull(self) -> None:
        name = f"{self.host}/me/{self.chance.choice('mp')}{self.chance.randrange(3)}:q4"
        assert self.store.pull(name, insecure=True).digest.startswith("sha256:")

    def push(self) -> None:
        """A model as it is now, whoever removes or replaces it meanwhile; others pull it again."""
        target = f"{self.host}/me/p{self.chance.randrange(3)}:q4"
        self.store.push(self._name(), target, insecure=True)

    def check(self) -> None:
        """Every model is whole at every moment, and weights are what was written."""
        for model in self.store.verify():
            self.faults += [f"check: {model.name.display}: {line}" for line in model.problems]
        known = {digest_of(path.read_bytes()) for path in self.folder.glob("*.gguf")}
        for model in self.store.list():
            for layer in self.store.manifest(model.name).of("model"):
                assert layer.digest in known
