"""Times pushing and pulling a model over the loopback beside copying its file, and beside curl.

Of two servers, on the same cores and the same disk. docker-registry (apt-get install
docker-registry; without it its rows are left out) takes all bytes itself, and hashes what it is
sent. A registry of Ollama's kind redirects to storage, which writes what it is sent and hashes
nothing (tests/support/redirecting.py, a process of its own). All is warm, and on the disk at the
end: `cp` and a sync, and the commands, which sync what they write; curl, which neither hashes nor
syncs, shows what a server itself takes. See scripts/bench for the command.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "cli"), str(ROOT / "tests")]

from bench_tools import cpu_name  # noqa: E402
from support import docker_registry, redirecting  # noqa: E402

from gpukit import Store  # noqa: E402
from gpukit.store import change  # noqa: E402
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Manifest  # noqa: E402

PIECE = 1 << 24


# What to run with a folder for its data, and where its process is then told, by name.
SERVERS: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "docker-registry": docker_registry.serve,
    "storage": redirecting.serve,
}


@dataclass
class Times:
    """Of each round: seconds by the wall clock and of processors, the server's beside; and the
    most bytes of memory."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def run(self, command: list[str], server: Path, **variables: str) -> None:
        """Run a command, and note what it took."""
        environment = os.environ | variables | {"NO_PROXY": "127.0.0.1,localhost"}
        # As an installed command is: compiled.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        os.sync()  # what others have left to the disk is not of this
        theirs, before = cpu_of(server), time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)}: failed")
        self.seconds.append(time.perf_counter() - before)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.server_cpu.append(cpu_of(server) - theirs)
        self.memory = max(self.memory, usage.ru_maxrss * 1024)

    def copy(self, path: Path, to: Path) -> None:
        """Copy a file, and note what it took."""
        os.sync()
        used, before = time.process_time(), time.perf_counter()
        with path.open("rb") as source, to.open("wb") as sink:
            # Reflinks and copies inside the kernel would compare nothing.
            while data := source.read(PIECE):
                sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        self.seconds.append(time.perf_counter() - before)
        self.cpu.append(time.process_time() - used)
        to.unlink()

    def found(self) -> dict[str, float]:
        """The medians."""
        return {
            "seconds": median(self.seconds),
            "cpu_seconds": median(self.cpu),
            "server_cpu_seconds": median(self.server_cpu or [0.0]),
            "most_bytes_of_memory": self.memory,
        }


def cpu_of(server: Path) -> float:
    """Seconds of processors that the server in this folder has taken."""
    fields = Path("/proc", (server / "pid").read_text(), "stat").read_text().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def made(store: Store, size: int) -> Path:
    """The weights of a new model of `size` random bytes; a small one beside it. Written in pieces:
    a command's greatest memory is counted from that of the process that starts it."""
    with change(store) as changes:
        path, hasher = changes.temporary(), hashlib.sha256()
        with path.open("wb") as file:
            for _ in range(size // PIECE):
                piece = os.urandom(PIECE)
                hasher.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        digest = f"sha256:{hasher.hexdigest()}"
        layer = changes.add_file(path, digest, size, LAYER_PREFIX + "model")
        config = changes.add_bytes(b'{"model_format":"gguf"}\n', CONFIG_TYPE)
        changes.publish(store.find("big"), Manifest(config, (layer,)))
        small = changes.add_bytes(os.urandom(100), LAYER_PREFIX + "model")
        changes.publish(store.find("small"), Manifest(config, (small,)))
    return store.blobs / digest.replace(":", "-")


@dataclass(frozen=True)
class Round:
    """One round with one server, which runs: its name, address and folder, and where what is
    measured goes, by name."""

    name: str
    host: str
    folder: Path
    times: dict[str, Times]

    def by_gpukit(self, mine: Store, work: Path) -> None:
        variables = {"HOME": str(work / "home"), "XDG_CACHE_HOME": str(work / "home")}
        variables["PYTHONPYCACHEPREFIX"] = str(work / "compiled")
        # The small one first: then everything is compiled and read.
        for model in ("small", "big"):
            name = f"{self.host}/me/{model}:latest"
            mine.copy(model, name)
            for verb, store in (("push", mine.root), ("pull", work / "theirs")):
                command = [sys.executable, "-m", "gpukit_cli", verb, name, "--insecure", "--quiet"]
                noted = self.times[f"{self.name} {verb}"] if model == "big" else Times()
                noted.run(command, self.folder, GPUKIT_MODELS=str(store), **variables)
        shutil.rmtree(work / "theirs")

    def by_curl(self, blob: Path, got: Path) -> None:
        curl = ["curl", "--silent", "--show-error", "--fail", "--location"]
        place, digest = f"http://{self.host}/v2/me/curl/blobs", blob.name.replace("-", ":")
        begin = [*curl, "--noproxy", "*", "-X", "POST", "-o", "/dev/null"]
        told = "%header{location}%header{docker-upload-location}"
        asked = subprocess.run(
            [*begin, "-w", told, f"{place}/uploads/"], check=True, capture_output=True, text=True
        )
        # All of it at once: to docker-registry, or to the place of the first part in storage.
        to, joint = asked.stdout, f"&digest={digest}"
        if to.startswith("/"):
            port, upload = self.host.rpartition(":")[2], to.rpartition("/")[2]
            to, joint = f"http://localhost:{port}/storage/{upload}?first=0", ""
        put = ["-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", str(blob)]
        self.times[f"{self.name} curl push"].run([*curl, *put, to + joint], self.folder)
        pull = [*curl, "-o", str(got), f"{place}/{digest}"]
        self.times[f"{self.name} curl pull"].run(pull, self.folder)
        got.unlink()


def measured(work: Path, size: int, rounds: int, names: list[str]) -> dict[str, Any]:
    mine = Store(work / "mine")
    blob = made(mine, size)
    kinds = ["push", "pull", *(["curl push", "curl pull"] if shutil.which("curl") else [])]
    times = {"cp": Times()} | {f"{name} {kind}": Times() for name in names for kind in kinds}
    for _ in range(rounds):
        times["cp"].copy(blob, work / "copy")
        for name in names:
            with SERVERS[name](work / "server") as host:
                once = Round(name, host, work / "server", times)
                once.by_gpukit(mine, work)
                if "curl push" in kinds:
                    once.by_curl(blob, work / "got")
            check(work / "server", blob.name.replace("-", ":"))
            shutil.rmtree(work / "server")
    found = {name: each.found() for name, each in times.items()}
    for name, each in found.items():
        each["ratio_to_cp"] = found["cp"]["seconds"] / each["seconds"]
        server, _, kind = name.partition(" ")
        if (beside := found.get(f"{server} curl {kind}")) is not None:
            each["ratio_to_curl"] = beside["seconds"] / each["seconds"]
    return {"cpu": cpu_name(), "bytes": size, "rounds": rounds, "medians": found}


def check(server: Path, digest: str) -> None:
    """What storage has joined, where that is the server, is the model."""
    if (path := server / digest).exists():
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{actual}" != digest:
            sys.exit(f"storage has {actual}, sent was {digest}")


HEAD = """\
| what | time | rate | of `cp` | of curl | processors, client + server | peak memory |
|---|---|---|---|---|---|---|"""
SAID = {"docker-registry": "docker-registry", "storage": "a redirect to storage"}


def line(name: str, each: dict[str, float], size: int) -> str:
    """The row of the table in docs/benchmarks.md."""
    server, _, kind = name.partition(" ")
    what = {"": "`cp`", "curl push": "curl, sending", "curl pull": "curl, fetching"}
    cells = [what.get(kind, f"`gpukit {kind}`"), f"{each['seconds']:.1f} s"]
    if kind:
        cells[0] += f", {SAID[server]}"
    cells += [f"{size / each['seconds'] / 1e6:.0f} MB/s", f"{each['ratio_to_cp']:.2f}"]
    cells.append(f"{each['ratio_to_curl']:.2f}" if "ratio_to_curl" in each else "")
    theirs = f" + {each['server_cpu_seconds']:.1f}" if kind else ""
    cells.append(f"{each['cpu_seconds']:.1f}{theirs} s")
    # Of a smaller command it is that of the process which started it.
    own = kind in ("push", "pull")
    cells.append(f"{each['most_bytes_of_memory'] / 2**20:.0f} MiB" if own else "")
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench share", description=__doc__)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = list(SERVERS)
    if docker_registry.program() is None:
        names.remove("docker-registry")
        print(
            "docker-registry is not installed (apt-get install docker-registry): without its rows"
        )
    size = (1 << 30) if options.size == "full" else (1 << 26)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = measured(Path(folder), size, options.rounds, names)
    print(HEAD)
    for name, each in found["medians"].items():
        print(line(name, each, size))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


main()
