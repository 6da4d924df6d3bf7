"""Times pushing and pulling a model over the loopback beside copying its file, and beside curl.

The registry is docker-registry (apt-get install docker-registry), which writes what it is sent and
hashes it, on the same cores and the same disk. All is warm, and on the disk at the end: `cp` and a
sync, and the commands, which sync what they write; curl, which neither hashes nor syncs, shows what
the registry itself takes. See scripts/bench for the command.
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
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "cli"), str(ROOT / "tests")]

from bench_tools import cpu_name  # noqa: E402
from support import docker_registry  # noqa: E402

from gpukit import Store  # noqa: E402
from gpukit.store import change  # noqa: E402
from gpukit.store.manifest import CONFIG_TYPE, LAYER_PREFIX, Manifest  # noqa: E402

PIECE = 1 << 24


@dataclass
class Times:
    """Of each round: seconds by the wall clock and of processors, the registry's beside; and the
    most bytes of memory."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    registry_cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def run(self, command: list[str], registry: Path, **variables: str) -> None:
        """Run a command, and note what it took."""
        environment = os.environ | variables | {"NO_PROXY": "127.0.0.1"}
        # As an installed command is: compiled.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        theirs, before = cpu_of(registry), time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)}: failed")
        self.seconds.append(time.perf_counter() - before)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.registry_cpu.append(cpu_of(registry) - theirs)
        self.memory = max(self.memory, usage.ru_maxrss * 1024)

    def found(self) -> dict[str, float]:
        """The medians."""
        return {
            "seconds": median(self.seconds),
            "cpu_seconds": median(self.cpu or [0.0]),
            "registry_cpu_seconds": median(self.registry_cpu or [0.0]),
            "most_bytes_of_memory": self.memory,
        }


def cpu_of(registry: Path) -> float:
    """Seconds of processors that the registry in this folder has taken."""
    fields = Path("/proc", (registry / "pid").read_text(), "stat").read_text().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def copied(path: Path, to: Path) -> float:
    before = time.perf_counter()
    with path.open("rb") as source, to.open("wb") as sink:
        # Reflinks and copies inside the kernel would compare nothing.
        while data := source.read(PIECE):
            sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())
    seconds = time.perf_counter() - before
    to.unlink()
    return seconds


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


def by_gpukit(mine: Store, work: Path, host: str, registry: Path, times: dict[str, Times]) -> None:
    variables = {"HOME": str(work / "home"), "XDG_CACHE_HOME": str(work / "home")}
    variables["PYTHONPYCACHEPREFIX"] = str(work / "compiled")
    # The small one first: then everything is compiled and read.
    for model, noted in (("small", {"push": Times(), "pull": Times()}), ("big", times)):
        name = f"{host}/me/{model}:latest"
        mine.copy(model, name)
        for verb, store in (("push", mine.root), ("pull", work / "theirs")):
            command = [sys.executable, "-m", "gpukit_cli", verb, name, "--insecure", "--quiet"]
            noted[verb].run(command, registry, GPUKIT_MODELS=str(store), **variables)
    shutil.rmtree(work / "theirs")


def by_curl(blob: Path, work: Path, host: str, registry: Path, times: dict[str, Times]) -> None:
    curl = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]
    place = f"http://{host}/v2/me/big/blobs"
    begin = [*curl, "-X", "POST", "-o", "/dev/null", "-w", "%header{location}", f"{place}/uploads/"]
    begun = subprocess.run(begin, check=True, capture_output=True, text=True).stdout
    digest, got = blob.name.replace("-", ":"), work / "got"
    put = ["-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", str(blob)]
    times["curl push"].run([*curl, *put, f"{begun}&digest={digest}"], registry)
    times["curl pull"].run([*curl, "-o", str(got), f"{place}/{digest}"], registry)
    got.unlink()


def measured(work: Path, size: int, rounds: int) -> dict[str, Any]:
    mine, registry = Store(work / "mine"), work / "registry"
    blob = made(mine, size)
    verbs, curl = ("push", "pull"), shutil.which("curl") is not None
    times = {name: Times() for name in ("cp", *verbs, *(f"curl {v}" for v in verbs if curl))}
    for _ in range(rounds):
        times["cp"].seconds.append(copied(blob, work / "copy"))
        with docker_registry.serve(registry) as host:
            by_gpukit(mine, work, host, registry, times)
        shutil.rmtree(registry)
        if curl:
            with docker_registry.serve(registry) as host:
                by_curl(blob, work, host, registry, times)
            shutil.rmtree(registry)
    found = {name: each.found() for name, each in times.items()}
    for name, each in found.items():
        each["ratio_to_cp"] = found["cp"]["seconds"] / each["seconds"]
        if name in verbs and curl:
            each["ratio_to_curl"] = found[f"curl {name}"]["seconds"] / each["seconds"]
    return {"cpu": cpu_name(), "bytes": size, "rounds": rounds, "medians": found}


def line(name: str, each: dict[str, float], size: int) -> str:
    """What is printed of a row."""
    text = f"{name:9} {each['seconds']:6.2f} s {size / each['seconds'] / 1e6:6.0f} MB/s"
    if name == "cp":
        return text
    text += f", {each['ratio_to_cp']:.2f} of cp's rate"
    if "ratio_to_curl" in each:
        text += f", {each['ratio_to_curl']:.2f} of curl's"
    cpu, theirs = each["cpu_seconds"], each["registry_cpu_seconds"]
    text += f"; {cpu:.2f} s of processors, the registry's {theirs:.2f} s"
    # Of a smaller command it is that of the process which started it.
    memory = "" if name.startswith("curl") else f"; {each['most_bytes_of_memory'] / 2**20:.0f} MiB"
    return text + memory


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench share", description=__doc__)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if docker_registry.program() is None:
        sys.exit("Error: scripts/bench share needs a registry: apt-get install docker-registry")
    size = (1 << 30) if options.size == "full" else (1 << 26)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = measured(Path(folder), size, options.rounds)
    for name, each in found["medians"].items():
        print(line(name, each, size))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


main()
