"""What benchmarks share: the model that is timed, commands with their times, and the machine."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gpukit.formats.file_types import FILE_TYPES

ROOT = Path(__file__).resolve().parent.parent.parent
TOKENIZER = ROOT / "tests" / "data" / "tiny-shakespeare"


QUANTIZE = """
import ctypes, sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.ftype, p.nthread = int(sys.argv[3]), int(sys.argv[4])
source, out = sys.argv[1].encode(), sys.argv[2].encode()
sys.exit(llama_cpp.llama_model_quantize(source, out, ctypes.byref(p)))
"""


def printed_json(command: list[str]) -> tuple[Any, int]:
    """The JSON that a command prints, and its peak memory in MiB."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]}: failed with status {status}")
    return json.loads(text), usage.ru_maxrss >> 10


def run_twice(command: list[object], work: Path, files: list[Path]) -> tuple[float, float, int]:
    """Seconds of a first run, which compiles, and of a second one; peak memory of that in MiB."""
    cache = work / "cold-cache"
    shutil.rmtree(cache, ignore_errors=True)
    first, _ = timed(command, XDG_CACHE_HOME=str(cache))
    read_all(files)
    seconds, memory = timed(command, XDG_CACHE_HOME=str(cache))
    return first, seconds, memory


def quantize_command(peers: Path, source: Path, out: Path, name: str) -> list[object]:
    number, threads = FILE_TYPES[name].number, os.cpu_count()
    return [peers / "bin" / "python", "-c", QUANTIZE, source, out, number, threads]


def llama_cpp(peers: Path) -> Path:
    """llama.cpp's source."""
    (tree,) = (peers / "source").glob("llama_cpp_python-*/vendor/llama.cpp")
    return tree


def convert_command(peers: Path, folder: Path, out: Path, kind: str = "bf16") -> list[object]:
    tree = llama_cpp(peers)
    return [
        "env", f"PYTHONPATH={tree / 'gguf-py'}", sys.executable, tree / "convert_hf_to_gguf.py",
        folder, "--outfile", out, "--outtype", kind,
    ]  # fmt: skip


def timed(command: list[object], **variables: str) -> tuple[float, int]:
    """Wall seconds and peak memory in MiB (of its largest process) of a command."""
    started = time.monotonic()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"{' '.join(map(str, command))}: failed with status {status}")
    return seconds, usage.ru_maxrss >> 10


def timed_io(command: list[object], **variables: str) -> tuple[float, int, int]:
    """As `timed`, and the bytes that the command's first process has read by the system's count,
    from the page cache or not."""
    started = time.monotonic()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - started
    counted = Path(f"/proc/{child.pid}/io").read_text().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))}: failed with status {status}")
    return seconds, usage.ru_maxrss >> 10, int(counted[0].partition(": ")[2])


def apart(work: Callable[..., None], *args: Any) -> None:
    """Run `work` in a process of its own: what this one holds counts as its children's peak."""
    child = get_context("spawn").Process(target=work, args=args)
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(1)


def same_bytes(a: Path, b: Path) -> None:
    """Refuse to report times of files that differ."""
    from gpukit.formats.gguf_reader import GGUFFile

    with GGUFFile(a) as ours, GGUFFile(b) as theirs:
        if set(ours.tensors) != set(theirs.tensors):
            sys.exit(f"other tensors: {set(ours.tensors) ^ set(theirs.tensors)}")
        for name, info in ours.tensors.items():
            other = theirs.tensors[name]
            if info.type != other.type or (ours.read(info) != theirs.read(other)).any():
                sys.exit(f"{name}: {info.type} and {other.type} differ; no times are reported")


def read_all(paths: list[Path]) -> None:
    """Bring the model into the page cache: every contender starts from memory."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def shapes_of(size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    hidden, layers, heads, kv_heads, ff, vocabulary = size
    head = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (hidden, hidden),
            at + "self_attn.k_proj.weight": (kv_heads * head, hidden),
            at + "self_attn.v_proj.weight": (kv_heads * head, hidden),
            at + "self_attn.o_proj.weight": (hidden, hidden),
            at + "mlp.gate_proj.weight": (ff, hidden),
            at + "mlp.up_proj.weight": (ff, hidden),
            at + "mlp.down_proj.weight": (hidden, ff),
        }
    return shapes


def make_checkpoint(folder: Path, size: tuple[int, ...]) -> None:
    """A BF16 Llama with gaussian weights and the tokenizer of the test model."""
    import torch
    from safetensors.torch import save_file

    if (folder / "model.safetensors").exists():
        return
    hidden, layers, heads, kv_heads, ff, vocabulary = size
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    config = json.loads((TOKENIZER / "config.json").read_text())
    config |= {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ff, "vocab_size": vocabulary,
        "head_dim": hidden // heads, "max_position_embeddings": 4096,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=random) * 0.02).bfloat16()
        for name, shape in shapes_of(size).items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def vector_width() -> str:
    """The widest vectors of the processor, and what GPUKIT_CFLAGS makes of them."""
    flags = Path("/proc/cpuinfo").read_text()
    widest = next((n for n in ("avx512f", "avx2", "asimd") if n in flags), "no vectors")
    chosen = os.environ.get("GPUKIT_CFLAGS")
    return f"{widest}, gpukit with {chosen}" if chosen else widest
