"""Times `gpukit convert --converter` beside llama.cpp's converter and llama-quantize, all cores, in
one run. Called by bench.py.

    chain      the converter to the type, where it writes that itself; else to BF16, then
               llama-quantize
    bridge     `gpukit convert --type --converter`, the second run

Of a Llama, and of a layer of 96 experts, which the converter stacks. Memory is the largest sum over
the processes of a contender at a time, of all pages and of those that are no file's (`own`).
Nothing is reported unless every tensor's bytes agree.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bench_tools as tools

from gpukit.formats.file_types import CONVERTED

EXPERTS = 96
# Seconds between two looks at memory.
LOOK = 0.05


@dataclass(frozen=True)
class Spent:
    """Wall and CPU seconds of a contender, and its peak memory in MiB."""

    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    own: int = 0

    def then(self, other: "Spent") -> "Spent":
        """Of one behind the other."""
        peak, own = max(self.peak, other.peak), max(self.own, other.own)
        return Spent(self.wall + other.wall, self.cpu + other.cpu, peak, own)

    def told(self, who: str) -> dict[str, object]:
        return {
            f"{who}_s": round(self.wall, 2),
            f"{who}_cpu_s": round(self.cpu, 2),
            f"{who}_peak_mib": self.peak,
            f"{who}_peak_own_mib": self.own,
        }


def compare(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    """A row of the report for each model: seconds and memory of both, and their ratios."""
    experts = work / "experts"
    tools.apart(make_experts, experts, folder)
    models = {"llama": folder, f"{EXPERTS} experts": experts}
    return {"type": name, **{what: _model(peers, work, at, name) for what, at in models.items()}}


def _model(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    ours, theirs, middle = work / "ours.gguf", work / "theirs.gguf", work / "middle.gguf"
    for path in (ours, theirs, middle):
        path.unlink(missing_ok=True)
    files = [*folder.iterdir()]
    tools.read_all(files)
    if name in CONVERTED:
        chain = _spent(tools.convert_command(peers, folder, theirs, name.lower()))
        parts = {}
    else:
        first = _spent(tools.convert_command(peers, folder, middle))
        second = _spent(tools.quantize_command(peers, middle, theirs, name))
        chain = first.then(second)
        parts = {"convert_s": round(first.wall, 2), "quantize_s": round(second.wall, 2)}
    cache = work / "cold-cache"
    command = [
        sys.executable, "-m", "gpukit_cli", "convert", folder, ours, "--type", name,
        "--converter", tools.llama_cpp(peers), "--quiet",
    ]  # fmt: skip
    first_run = _spent(command, XDG_CACHE_HOME=str(cache))
    ours.unlink()
    tools.read_all(files)
    bridge = _spent(command, XDG_CACHE_HOME=str(cache))
    tools.apart(tools.same_bytes, ours, theirs)
    return {
        "source_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        **parts,
        **chain.told("chain"),
        **bridge.told("bridge"),
        "bridge_first_run_s": round(first_run.wall, 2),
        "seconds_ratio": round(bridge.wall / chain.wall, 3),
        "cpu_ratio": round(bridge.cpu / chain.cpu, 3),
        "memory_ratio": round(bridge.peak / chain.peak, 3),
    }


def _spent(command: list[object], **variables: str) -> Spent:
    """What a command and all processes below it take."""
    started, peak, own = time.monotonic(), 0, 0
    child = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )  # fmt: skip
    while not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        pages = [_memory(pid) for pid in _below(child.pid)]
        peak = max(peak, sum(everything for everything, _ in pages))
        own = max(own, sum(mine for _, mine in pages))
        time.sleep(LOOK)
    wall = time.monotonic() - started
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))}: failed with status {status}")
    return Spent(wall, usage.ru_utime + usage.ru_stime, peak >> 10, own >> 10)


def _below(pid: int) -> Iterator[int]:
    """`pid` and its descendants."""
    yield pid
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for word in (thread / "children").read_text().split():
                yield from _below(int(word))
    except OSError:  # it has ended
        return


def _memory(pid: int) -> tuple[int, int]:
    """KiB of a process that are in memory, and of them those that are no file's."""
    found = {"VmRSS": 0, "RssFile": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    for line in lines:
        key, _, value = line.partition(":")
        if key in found:
            found[key] = int(value.split()[0])
    return found["VmRSS"], found["VmRSS"] - found["RssFile"]


def make_experts(out: Path, llama: Path) -> None:
    """A BF16 Mixtral of one layer and 96 experts, as wide as the model in `llama`, with its
    tokenizer."""
    import torch
    from safetensors.torch import save_file

    if (out / "model.safetensors").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    for path in llama.iterdir():
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((llama / "config.json").read_text())
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    inner = hidden // 2
    config |= {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 1,
        "intermediate_size": inner, "num_local_experts": EXPERTS, "num_experts_per_tok": 4,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    heads = tools.shapes_of((
        hidden, 1, config["num_attention_heads"], config["num_key_value_heads"], inner, vocabulary
    ))  # fmt: skip
    shapes = {key: shape for key, shape in heads.items() if ".mlp." not in key}
    at = "model.layers.0.block_sparse_moe."
    shapes[f"{at}gate.weight"] = (EXPERTS, hidden)
    for i in range(EXPERTS):
        for part, shape in (
            ("w1", (inner, hidden)),
            ("w2", (hidden, inner)),
            ("w3", (inner, hidden)),
        ):
            shapes[f"{at}experts.{i}.{part}.weight"] = shape
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=random) * 0.02).bfloat16()
        for name, shape in shapes.items()
    }
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
