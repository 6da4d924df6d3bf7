"""Whole files through `gpukit quantize`: small ones with the CPU's bytes, a large one timed."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gpucheck.base import ROOT, Plan

TINY = ROOT / "tests" / "data" / "tiny-shakespeare"
# Label -> input, type, whether with importance.
SMALL = {
    "checkpoint Q4_K_M": ("checkpoint", "Q4_K_M", False),
    "checkpoint Q8_0": ("checkpoint", "Q8_0", False),
    "gguf Q4_K_M": ("gguf", "Q4_K_M", False),
    "gguf Q4_K_M importance": ("gguf", "Q4_K_M", True),
}
# A type, and whether with importance.
BIG = ("Q4_K_M", "Q8_0", "Q4_K_M importance")
LACKING = "no gguf package here"


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _metadata(layers: int, width: int) -> bytes:
    """The keys that a llama GGUF has at least, written: a string, then whole numbers."""
    numbers = {
        "block_count": layers,
        "context_length": 4096,
        "embedding_length": width,
        "feed_forward_length": width,
        "attention.head_count": width // 128,
        "attention.head_count_kv": width // 128,
    }
    out = _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    for key, number in numbers.items():
        out += _text(f"llama.{key}") + struct.pack("<II", 4, number)
    out += _text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    return struct.pack("<QQ", 0, 2 + len(numbers)) + out


def tensors(layers: int, rows: int, hidden: int, vocabulary: int, width: int) -> dict[str, Any]:
    """Name -> rows and columns of the weights."""
    found = {"token_embd.weight": (vocabulary, width), "output.weight": (vocabulary, width)}
    for layer in range(layers):
        at = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            found[f"{at}{name}.weight"] = (rows, width)
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            found[f"{at}{name}.weight"] = (hidden, width)
    return found


def write_gguf(path: Path, shapes: dict[str, tuple[int, int]], layers: int, width: int) -> None:
    """A bf16 GGUF of `shapes`: normal weights, drawn once and laid again and again."""
    metadata = _metadata(layers, width)
    head = b"GGUF" + struct.pack("<IQ", 3, len(shapes)) + metadata[8:16]
    infos, at = b"", 0
    for name, (rows, columns) in shapes.items():
        infos += _text(name) + struct.pack("<IQQIQ", 2, columns, rows, 30, at)
        at += -(-rows * columns * 2 // 32) * 32
    head += metadata[16:] + infos
    chunk = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(2)) * 0.02).bfloat16()
    data = memoryview(chunk.view(torch.uint8).numpy())
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % 32))
        while at:
            at -= file.write(data[: min(at, len(data))])


def _importance(path: Path, names: Iterable[str], width: int) -> None:
    """An importance matrix in llama.cpp's old format."""
    names = list(names)
    out = struct.pack("<i", len(names))
    random = torch.Generator().manual_seed(4)
    for name in names:
        data = name.encode()
        out += struct.pack("<i", len(data)) + data + struct.pack("<ii", 1, width)
        out += (torch.rand(width, generator=random) ** 3).numpy().tobytes()
    path.write_bytes(out)


def _quantize(plan: Plan, source: Path, out: Path, kind: str, device: str, *more: str) -> Any:
    """What the command says in JSON."""
    paths = [ROOT / "scripts" / "lib", ROOT, ROOT / "kernels", ROOT / "cli"]
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "gpucheck.cli", "quantize", str(source), str(out), kind]
    done = subprocess.run(
        [*command, "--device", device, "--json", *more],
        capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": path, "GPU_CHECK_FOLDER": plan.folder},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-600:])
    return json.loads(done.stdout) if done.stdout.strip() else {}


def _small(plan: Plan, label: str, device: str) -> Path:
    source, kind, weighted = SMALL[label]
    mine = plan.at / f"small-{label.replace(' ', '-')}-{device.partition(':')[0]}"
    mine.mkdir(exist_ok=True)
    given, more = TINY, []
    if source == "gguf":
        width = plan.width
        shapes = tensors(2, 64, 128, 256, width)
        given = mine / "in.gguf"
        write_gguf(given, shapes, 2, width)
        if weighted:
            # One path for both devices: the file names it.
            importance = plan.at / "importance.dat"
            _importance(importance, shapes, width)
            more = ["--imatrix", str(importance)]
    _quantize(plan, given, mine / "out.gguf", kind, device, *more)
    return mine / "out.gguf"


def on_the_cpu(plan: Plan, label: str) -> dict[str, Any]:
    """Make the file that the GPU's has to equal."""
    if find_spec("gguf") is None:
        return {"left_out": LACKING}
    out = _small(plan, label, "cpu")
    os.replace(out, plan.at / f"{label.replace(' ', '-')}.wanted")
    return {}


def check_small(plan: Plan) -> dict[str, Any]:
    """The small files' bytes, GPU against CPU."""
    if find_spec("gguf") is None:
        return {"left_out": LACKING}
    wrong, took = [], {}
    for label in SMALL:
        begin = time.monotonic()
        got = _small(plan, label, plan.device).read_bytes()
        took[label] = round(time.monotonic() - begin, 2)
        wanted = (plan.at / f"{label.replace(' ', '-')}.wanted").read_bytes()
        if got != wanted:
            pairs = zip(got, wanted, strict=False)
            first = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(wanted))
            )
            wrong.append(
                {"kind": label, "first": first, "bytes": [len(got), len(wanted)],
                 "got": got[first : first + 64].hex(), "wanted": wanted[first : first + 64].hex()}
            )  # fmt: skip
    return {"seconds": took, "wrong": wrong}


def big_file(plan: Plan) -> dict[str, Any]:
    """Write the large file."""
    width = plan.width
    large = plan.big > 1
    shapes = tensors(plan.big, width, 14336 if large else 64, 128256 if large else 64, width)
    write_gguf(plan.at / "big.gguf", shapes, plan.big, width)
    _importance(plan.at / "big.dat", shapes, width)
    return {"bytes": (plan.at / "big.gguf").stat().st_size}


def time_big(plan: Plan, kind: str) -> dict[str, Any]:
    """Seconds of the whole command, and of a plain copy of its input beside it."""
    if find_spec("gguf") is None:
        return {"left_out": LACKING}
    source, out = plan.at / "big.gguf", plan.at / "big.out"
    kind, _, weighted = kind.partition(" ")
    more = ["--imatrix", str(plan.at / "big.dat")] if weighted else []
    begin = time.monotonic()
    shutil.copyfile(source, out)
    copied = time.monotonic() - begin
    out.unlink()
    runs = []
    for _ in range(2):
        begin = time.monotonic()
        said = _quantize(plan, source, out, kind, plan.device, *more)
        took = time.monotonic() - begin
        runs.append({"seconds": took, "gb_per_s": source.stat().st_size / took / 1e9})
        out.unlink()
    short = {k: v for k, v in said.items() if not isinstance(v, list | dict)} if said else {}
    return {
        "copy_seconds": copied,
        "runs": runs,
        "input_bytes": source.stat().st_size,
        "said": short,
    }
