"""Times `gpukit merge` beside its peers, all cores, in one run; called by bench.py.

    folder     a checkpoint and a PEFT adapter to safetensors, beside PEFT's merge_and_unload and
               save_pretrained
    Q4_K_M     the same to a quantised GGUF, beside PEFT, converter and llama-quantize in a chain
    F16        an F16 GGUF and a GGUF adapter to F16, beside llama-export-lora, where it is built

Nothing is reported unless the weights agree: dense ones within their rounding, quantised ones with
those of the chain's own merged folder.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import bench_tools as tools

RANK = 16
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPORT = "llama-export-lora"

PEFT = """
import sys, torch, peft, transformers
base, adapter, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def compare(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    """A row of the report: seconds, memory and bytes of gpukit and of the peer."""
    adapter = work / "adapter"
    tools.apart(make_adapter, folder, adapter)
    if name == "folder":
        row = _folder(work, folder, adapter)
    elif name == "F16":
        row = _gguf(peers, work, folder, adapter)
    else:
        row = _chain(peers, work, folder, adapter, name)
    return {"type": name, **row}


def _folder(work: Path, folder: Path, adapter: Path) -> dict[str, object]:
    theirs, ours = work / "peft", work / "merged"
    peer, peer_memory = _peft(folder, adapter, theirs)
    command = _gpukit("merge", folder, ours, "--adapter", adapter)
    found = _twice(command, work, folder, ours)
    tools.apart(_alike, theirs, ours)
    return _row(peer, peer_memory, found) | {
        "memory_ratio": round(found["gpukit_peak_mib"] / peer_memory, 2)
    }


def _chain(peers: Path, work: Path, folder: Path, adapter: Path, name: str) -> dict[str, object]:
    theirs, ours = work / "peft", work / "ours.gguf"
    middle, end = work / "middle.gguf", work / "theirs.gguf"
    merged, peer_memory = _peft(folder, adapter, theirs)
    for file in ("tokenizer.model", "tokenizer_config.json"):  # which save_pretrained leaves out
        shutil.copy(folder / file, theirs / file)
    convert, convert_memory = tools.timed(tools.convert_command(peers, theirs, middle))
    quantize, quantize_memory = tools.timed(tools.quantize_command(peers, middle, end, name))
    command = _gpukit("merge", folder, ours, "--adapter", adapter, "--type", name)
    found = _twice(command, work, folder, ours)
    # The chain rounds to BF16 after merging: its bytes are those of its own folder.
    again = work / "again.gguf"
    tools.timed(_gpukit("convert", theirs, again, "--type", name))
    tools.apart(tools.same_bytes, again, end)
    disk = _bytes(theirs) + middle.stat().st_size
    row = _row(
        merged + convert + quantize, max(peer_memory, convert_memory, quantize_memory), found
    )
    return row | {
        "peft_s": round(merged, 2),
        "convert_s": round(convert, 2),
        "quantize_s": round(quantize, 2),
        "peer_bytes_between": disk,
        "source_bytes": _bytes(folder) + _bytes(adapter),
        "result_bytes": ours.stat().st_size,
    }


def _gguf(peers: Path, work: Path, folder: Path, adapter: Path) -> dict[str, object]:
    source, lora = work / "f16.gguf", work / "adapter.gguf"
    ours, theirs = work / "ours-f16.gguf", work / "theirs-f16.gguf"
    tool = peers / "bin" / EXPORT
    if not tool.exists():
        return {"peer": f"{EXPORT} is not built"}
    tools.timed(_gpukit("convert", folder, source, "--type", "F16"))
    tools.timed(_gpukit("adapter", adapter, lora, "--base", folder))
    tools.read_all([source])
    words = [tool, "-m", source, "--lora", lora, "-o", theirs, "-t", os.cpu_count()]
    peer, peer_memory = tools.timed(words)
    command = _gpukit("merge", source, ours, "--adapter", lora)
    return _row(peer, peer_memory, _twice(command, work, source.parent, ours, [source]))


def _row(peer: float, memory: int, found: dict[str, float]) -> dict[str, object]:
    return {
        "peer_s": round(peer, 2),
        "peer_peak_mib": memory,
        **found,
        "times_as_fast": round(peer / found["gpukit_s"], 2),
    }


def _peft(folder: Path, adapter: Path, out: Path) -> tuple[float, int]:
    _gone(out)
    tools.read_all([*folder.iterdir()])
    return tools.timed([sys.executable, "-c", PEFT, folder, adapter, out])


def _twice(
    command: list[object], work: Path, folder: Path, out: Path, files: Sequence[Path] = ()
) -> dict[str, float]:
    """Seconds of a first run, which compiles, and of a second one, and what that read and wrote."""
    cache = work / "cold-cache"
    shutil.rmtree(cache, ignore_errors=True)
    found: dict[str, float] = {}
    for turn in ("gpukit_first_run_s", "gpukit_s"):
        _gone(out)
        tools.read_all([*files] or [*folder.iterdir()])
        began = time.monotonic()
        child = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.DEVNULL,
        )
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found[turn] = round(time.monotonic() - began, 2)
        counted = dict(
            line.split(": ") for line in Path(f"/proc/{child.pid}/io").read_text().splitlines()
        )
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"{command}: failed with status {status}")
    return found | {
        "gpukit_peak_mib": usage.ru_maxrss >> 10,
        "gpukit_bytes_read": int(counted["rchar"]),
        "gpukit_bytes_written": int(counted["wchar"]),
    }


def _gpukit(*words: object) -> list[object]:
    return [sys.executable, "-m", "gpukit_cli", *words, "--device", "cpu", "--quiet"]


def _gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def make_adapter(base: Path, out: Path) -> None:
    """A PEFT adapter of rank 16 for all linear layers of the model in `base`, numbers at random."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if out.exists():
        return
    random, found = torch.Generator().manual_seed(1), {}
    with safe_open(base / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] in LINEAR:
                rows, width = file.get_slice(name).get_shape()
                for end, shape in (("A", (RANK, width)), ("B", (rows, RANK))):
                    values = torch.randn(shape, generator=random) * 0.02
                    found[f"base_model.model.{module}.lora_{end}.weight"] = values
    out.mkdir()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name,
        "r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(LINEAR),
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config))
    save_file(found, out / "adapter_model.safetensors")


def _alike(theirs: Path, ours: Path) -> None:
    """Refuse to report times of weights that differ by more than their rounding to BF16 and PEFT's
    own: it rounds the delta to BF16 before it adds it."""
    from safetensors import safe_open

    with (
        safe_open(theirs / "model.safetensors", "pt") as a,
        safe_open(ours / "model.safetensors", "pt") as b,
    ):
        for name in a.keys():  # noqa: SIM118
            one, two = a.get_tensor(name).float(), b.get_tensor(name).float()
            room = 2**-7 * (one.abs() + 0.02)
            if ((one - two).abs() > room).any():
                sys.exit(f"{name}: the two merges differ; no times are reported")
