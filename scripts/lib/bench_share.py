"""Times pushing and pulling a model over the loopback beside copying its file.

The registry is docker-registry (apt-get install docker-registry), which writes what it is sent and
hashes it, on the same cores and the same disk. All is warm, and on the disk at the end: `cp` and a
sync, and the commands, which sync what they write. See scripts/bench for the command.
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


def run(command: list[str], store: Path, home: Path) -> tuple[float, int]:
    """Seconds and the most bytes of memory of a command."""
    variables = {"HOME": str(home), "GPUKIT_MODELS": str(store), "XDG_CACHE_HOME": str(home)}
    before = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | variables | {"NO_PROXY": "127.0.0.1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    return time.perf_counter() - before, usage.ru_maxrss * 1024


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
    """The weights of a new model of `size` random bytes. Written in pieces: a command's greatest
    memory is counted from that of the process that starts it."""
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
        changes.publish(store.find("big:latest"), Manifest(config, (layer,)))
    return store.blobs / digest.replace(":", "-")


def measured(work: Path, size: int, rounds: int) -> dict[str, Any]:
    mine = Store(work / "mine")
    blob = made(mine, size)
    times: dict[str, list[float]] = {"cp": [], "push": [], "pull": []}
    memory = {"push": 0, "pull": 0}
    gpukit = [sys.executable, "-m", "gpukit_cli"]
    for n in range(rounds):
        times["cp"].append(copied(blob, work / "copy"))
        folder = work / f"registry{n}"
        with docker_registry.serve(folder) as host:
            name = f"{host}/me/big:latest"
            mine.copy("big:latest", name)
            for verb, store in (("push", mine.root), ("pull", work / "theirs")):
                command = [*gpukit, verb, name, "--insecure", "--quiet"]
                seconds, most = run(command, store, work / "home")
                times[verb].append(seconds)
                memory[verb] = max(memory[verb], most)
        shutil.rmtree(folder)
        shutil.rmtree(work / "theirs")
    seconds = {verb: median(each) for verb, each in times.items()}
    return {
        "cpu": cpu_name(),
        "bytes": size,
        "rounds": rounds,
        "seconds": seconds,
        "ratio_to_cp": {verb: seconds["cp"] / seconds[verb] for verb in memory},
        "most_bytes_of_memory": memory,
    }


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
    for verb, seconds in found["seconds"].items():
        memory = found["most_bytes_of_memory"].get(verb)
        told = f", {memory / 2**20:.0f} MiB of memory" if memory else ""
        ratio = f", {found['ratio_to_cp'][verb]:.2f} of cp's rate" if memory else ""
        print(f"{verb:5} {seconds:6.2f} s {found['bytes'] / seconds / 1e6:7.0f} MB/s{ratio}{told}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


main()
