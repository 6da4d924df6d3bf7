"""Times `gpukit batch` of one checkpoint to several types beside its peers, all cores, in one run.

Called by bench.py.

    peer       one conversion to BF16, and a run of llama-quantize for each type
    alone      a run of `gpukit convert` for each type
    batch      one `gpukit batch` for all

Nothing is reported unless every tensor's bytes agree, type by type.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import bench_tools as tools


def compare(peers: Path, work: Path, folder: Path, names: Sequence[str]) -> dict[str, object]:
    """A row of the report: seconds, memory and bytes read of the three."""
    cache = work / "cold-cache"
    shutil.rmtree(cache, ignore_errors=True)
    peer, peer_parts = _peer(peers, work, folder, names)
    plan = _plan(work, folder, names)
    first, *_ = _batch(work, folder, plan, cache)
    batch, memory, read = _batch(work, folder, plan, cache)
    alone, alone_parts, alone_read = _alone(work, folder, names, cache)
    for name in names:
        tools.apart(tools.same_bytes, work / f"batch-{name}.gguf", work / f"peer-{name}.gguf")
        tools.apart(tools.same_bytes, work / f"alone-{name}.gguf", work / f"peer-{name}.gguf")
    return {
        "types": list(names),
        "peer_s": round(peer, 2),
        "peer_parts_s": peer_parts,
        "gpukit_alone_s": round(alone, 2),
        "gpukit_alone_parts_s": alone_parts,
        "gpukit_batch_s": round(batch, 2),
        "gpukit_batch_first_run_s": round(first, 2),
        "gpukit_batch_peak_mib": memory,
        "gpukit_alone_bytes_read": alone_read,
        "gpukit_batch_bytes_read": read,
        "of_the_bytes": round(read / alone_read, 3),
        "times_as_fast_as_peer": round(peer / batch, 2),
        "times_as_fast_as_alone": round(alone / batch, 2),
    }


def _peer(
    peers: Path, work: Path, folder: Path, names: Sequence[str]
) -> tuple[float, dict[str, float]]:
    middle = work / "middle.gguf"
    middle.unlink(missing_ok=True)
    tools.read_all([*folder.iterdir()])
    parts = {"convert": tools.timed(tools.convert_command(peers, folder, middle))[0]}
    for name in names:
        out = work / f"peer-{name}.gguf"
        out.unlink(missing_ok=True)
        parts[name] = tools.timed(tools.quantize_command(peers, middle, out, name))[0]
    return sum(parts.values()), {name: round(seconds, 2) for name, seconds in parts.items()}


def _plan(work: Path, folder: Path, names: Sequence[str]) -> Path:
    plan = {
        "sources": [{"path": str(folder), "name": "model"}],
        "types": list(names),
        "output": str(work / "batch-{type}.gguf"),
    }
    path = work / "plan.yaml"
    path.write_text(json.dumps(plan))  # JSON is YAML
    return path


def _batch(work: Path, folder: Path, plan: Path, cache: Path) -> tuple[float, int, int]:
    for path in work.glob("batch-*"):
        path.unlink()
    tools.read_all([*folder.iterdir()])
    return tools.timed_io(_gpukit("batch", plan), XDG_CACHE_HOME=str(cache))


def _alone(
    work: Path, folder: Path, names: Sequence[str], cache: Path
) -> tuple[float, dict[str, float], int]:
    parts, read = {}, 0
    for name in names:
        out = work / f"alone-{name}.gguf"
        out.unlink(missing_ok=True)
        tools.read_all([*folder.iterdir()])
        command = _gpukit("convert", folder, out, "--type", name)
        seconds, _, count = tools.timed_io(command, XDG_CACHE_HOME=str(cache))
        parts[name], read = round(seconds, 2), read + count
    return sum(parts.values()), parts, read


def _gpukit(*words: object) -> list[object]:
    return [sys.executable, "-m", "gpukit_cli", *words, "--quiet"]
