"""Times gpukit beside llama.cpp on the same model, all cores, in one run.

    convert    one pass of gpukit beside the converter and llama-quantize, from a checkpoint
    quantize   gpukit quantize beside llama-quantize, from a BF16 GGUF, and beside copying that file
    batch      all types in one pass of gpukit beside converter and llama-quantize for each, and
               beside gpukit for each; bench_batch.py
    bridge     the converter through gpukit (--converter) beside itself and llama-quantize, also
               for experts; bench_bridge.py
    merge      an adapter of rank 16 into the model, beside PEFT and what follows it; bench_merge.py
    run        tokens a second of a prompt and of what follows it, beside llama.cpp, on the CPU
    perplexity  tokens a second of a text, beside llama-perplexity, on the CPU

Reports nothing unless every tensor's bytes agree. See scripts/bench for the command.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from statistics import median

from bench_tools import (
    ROOT,
    apart,
    convert_command,
    cpu_name,
    make_checkpoint,
    printed_json,
    quantize_command,
    read_all,
    run_twice,
    same_bytes,
    shapes_of,
    timed,
    vector_width,
)

from gpukit_kernels.facts import MATCHED

# hidden, layers, heads, kv heads, feed-forward, vocabulary
SIZES = {
    "full": (2048, 15, 32, 8, 5632, 32000),
    "small": (512, 4, 8, 4, 1536, 8192),
}

TYPES = {
    "convert": "Q4_K_M,Q8_0",
    "quantize": "Q4_K_M,Q5_K_M,Q2_K,Q6_K,IQ4_XS,Q3_K_M,Q4_0,Q8_0,Q5_1",
    "run": "Q4_K_M",
    "batch": "Q4_K_M,Q5_K_M,Q6_K,Q8_0,Q3_K_M,IQ4_XS",
    "bridge": "Q4_K_M,Q8_0",
    "merge": "folder,Q4_K_M,F16",
    "perplexity": "BF16,Q4_K_M",
}
# Tokens of the prompt, and tokens that follow it one at a time.
PROMPT, FOLLOWING = 256, 48
# Windows of 512 tokens whose perplexity is measured.
CHUNKS = 8


# Both run the same tokens, and say seconds of the prompt and of each token that follows. Without
# "extra buffers": llama.cpp's code for AMX ends in an illegal instruction on some virtual machines.
RUN_PEER = """
import ctypes, json, sys, time
import llama_cpp as llama
path, prompt, following, threads = sys.argv[1].encode(), *map(int, sys.argv[2:])
llama.llama_backend_init()
params = llama.llama_model_default_params()
params.use_extra_bufts = False
model = llama.llama_model_load_from_file(path, params)
params = llama.llama_context_default_params()
params.n_ctx = params.n_batch = 2 * (prompt + following)
params.n_threads = params.n_threads_batch = threads
context = llama.llama_init_from_model(model, params)
def run(ids):
    begin = time.perf_counter()
    tokens = (llama.llama_token * len(ids))(*ids)
    if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids))):
        sys.exit("llama_decode failed")
    llama.llama_get_logits(context)
    return time.perf_counter() - begin
run(range(3, 19))
llama.llama_memory_clear(llama.llama_get_memory(context), True)
first = run(range(3, 3 + prompt))
print(json.dumps([first, [run([3 + i]) for i in range(following)]]))
"""

RUN_OURS = """
import json, sys, time
import gpukit
prompt, following = map(int, sys.argv[2:4])
decoder = gpukit.load(sys.argv[1], device="cpu").decoder
def run(ids, cache):
    begin = time.perf_counter()
    decoder.forward(ids, cache)
    return time.perf_counter() - begin
run(range(3, 19), decoder.cache(32))
cache = decoder.cache(2 * (prompt + following))
first = run(range(3, 3 + prompt), cache)
print(json.dumps([first, [run([3 + i], cache) for i in range(following)]]))
"""


def main() -> None:
    args = _arguments()
    work = Path(args.work or tempfile.mkdtemp(prefix="gpukit-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        report = _bench(args, work)
    finally:
        if args.work is None:
            shutil.rmtree(work)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=TYPES)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--types", default=None)
    parser.add_argument("--work")
    parser.add_argument("--json")
    args = parser.parse_args()
    args.types = args.types or TYPES[args.what]
    return args


def _bench(args: argparse.Namespace, work: Path) -> dict[str, object]:
    folder, size = work / "model", SIZES[args.size]
    apart(make_checkpoint, folder, size)
    weights = sum(map(prod, shapes_of(size).values()))
    compare = {
        "convert": _compare_convert, "quantize": _compare_quantize, "run": _compare_run,
        "merge": _compare_merge, "perplexity": _compare_perplexity, "batch": _compare_batch,
        "bridge": _compare_bridge,
    }[args.what]  # fmt: skip
    report: dict[str, object] = {
        "command": f"scripts/bench {args.what} --size {args.size} --types {args.types}",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {vector_width()}",
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "gguf", "gpukit")},
        "peer": f"llama-cpp-python 0.3.36 ({MATCHED})",
        "weights": weights,
        "source_bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
        "rows": [],
    }
    print(f"{report['machine']}; {weights / 1e9:.2f} B weights BF16; peer: {report['peer']}")
    # A batch makes all types at once.
    for name in [args.types] if args.what == "batch" else args.types.split(","):
        row = compare(args.peers, work, folder, name)
        report["rows"].append(row)  # type: ignore[attr-defined]
        print(json.dumps(row), flush=True)
    return report


def _compare_convert(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    ours, theirs, middle = work / "ours.gguf", work / "theirs.gguf", work / "middle.gguf"
    for path in (ours, theirs, middle):
        path.unlink(missing_ok=True)
    read_all([*folder.iterdir()])
    convert, convert_memory = timed(convert_command(peers, folder, middle))
    quantize, quantize_memory = timed(quantize_command(peers, middle, theirs, name))
    command = [sys.executable, "-m", "gpukit_cli", "convert", folder, ours, "--type", name]
    first, seconds, memory = run_twice(command, work, [*folder.iterdir()])
    apart(same_bytes, ours, theirs)
    return {
        "type": name,
        "convert_s": round(convert, 2),
        "quantize_s": round(quantize, 2),
        "peer_s": round(convert + quantize, 2),
        "peer_peak_mib": max(convert_memory, quantize_memory),
        "gpukit_s": round(seconds, 2),
        "gpukit_first_run_s": round(first, 2),
        "gpukit_peak_mib": memory,
        "ratio": round(seconds / (convert + quantize), 3),
    }


def _compare_quantize(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    source, copy = work / "bf16.gguf", work / "copy.gguf"
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    if not source.exists():
        timed([sys.executable, "-m", "gpukit_cli", "convert", folder, source, "--type", "BF16"])
    for path in (ours, theirs, copy):
        path.unlink(missing_ok=True)
    read_all([source])
    copied, _ = timed(["dd", f"if={source}", f"of={copy}", "bs=16M", "conv=fsync"])
    copy.unlink()
    read_all([source])
    peer, peer_memory = timed(quantize_command(peers, source, theirs, name))
    command = [sys.executable, "-m", "gpukit_cli", "quantize", source, ours, name]
    cache = str(work / "cache")  # a first run of each type compiles; the second is what counts
    first, _ = timed(command, XDG_CACHE_HOME=cache)
    ours.unlink()  # replacing it would free its pages first
    read_all([source])
    seconds, memory = timed(command, XDG_CACHE_HOME=cache)
    apart(same_bytes, ours, theirs)
    return {
        "type": name,
        "peer_s": round(peer, 2),
        "peer_peak_mib": peer_memory,
        "gpukit_s": round(seconds, 2),
        "gpukit_first_run_s": round(first, 2),
        "gpukit_peak_mib": memory,
        "copy_s": round(copied, 2),
        "times_as_fast": round(peer / seconds, 2),
        "of_copy": round(seconds / copied, 2),
    }


def _compare_run(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    model = work / f"{name}.gguf"
    timed([sys.executable, "-m", "gpukit_cli", "convert", folder, model, "--type", name])
    words = [str(model), str(PROMPT), str(FOLLOWING), str(os.cpu_count())]
    theirs, _ = printed_json([str(peers / "bin" / "python"), "-c", RUN_PEER, *words])
    ours, memory = printed_json([sys.executable, "-c", RUN_OURS, *words])
    peer_prompt, peer_token = PROMPT / theirs[0], 1 / median(theirs[1])
    prompt, token = PROMPT / ours[0], 1 / median(ours[1])
    return {
        "type": name,
        "peer_prompt_tokens_s": round(peer_prompt, 1),
        "peer_tokens_s": round(peer_token, 1),
        "gpukit_prompt_tokens_s": round(prompt, 1),
        "gpukit_tokens_s": round(token, 1),
        "gpukit_mib_beside_the_file": memory - (model.stat().st_size >> 20),
        "prompt_ratio": round(prompt / peer_prompt, 2),
        "ratio": round(token / peer_token, 2),
    }


def _compare_perplexity(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    model, text = work / f"{name}.gguf", work / "text.txt"
    timed([sys.executable, "-m", "gpukit_cli", "convert", folder, model, "--type", name])
    text.write_text("\n".join(page.read_text() for page in sorted(ROOT.glob("docs/*.md"))))
    asked = [str(word) for word in ("-f", text, "--chunks", CHUNKS)]
    peer = [str(peers / "bin" / "llama-perplexity"), "-m", str(model), *asked]
    peer += ["-t", str(os.cpu_count())]
    done = subprocess.run(peer, capture_output=True, text=True, check=False)
    repacked = done.returncode != -signal.SIGILL  # its code for AMX, on some virtual machines
    if not repacked:
        done = subprocess.run([*peer, "--no-repack"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"llama-perplexity: failed with status {done.returncode}")
    said = done.stdout + done.stderr
    (value,) = re.findall(r"Final estimate: PPL = ([\d.]+)", said)
    # Minutes, seconds and thousandths of either line stand before it.
    begin, end = (
        60 * int(found[0]) + int(found[1]) + int(found[2]) / 1000
        for found in re.findall(
            r"(\d+)\.(\d+)\.(\d+)\.\d+ I (?:perplexity: calculating|Final)", said
        )
    )
    rate = CHUNKS * 512 / (end - begin)
    command = [sys.executable, "-m", "gpukit_cli", "perplexity", str(model), *asked, "--json"]
    found, memory = printed_json(command)
    return {
        "type": name,
        "peer_repacked": repacked,
        "peer_perplexity": float(value),
        "gpukit_perplexity": round(found["perplexity"], 4),
        "peer_tokens_s": round(rate, 1),
        "gpukit_tokens_s": round(found["tokens_per_second"], 1),
        "gpukit_mib_beside_the_file": memory - (model.stat().st_size >> 20),
        "ratio": round(found["tokens_per_second"] / rate, 2),
    }


def _compare_batch(peers: Path, work: Path, folder: Path, names: str) -> dict[str, object]:
    import bench_batch

    return bench_batch.compare(peers, work, folder, names.split(","))


def _compare_bridge(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    import bench_bridge

    return bench_bridge.compare(peers, work, folder, name)


def _compare_merge(peers: Path, work: Path, folder: Path, name: str) -> dict[str, object]:
    import bench_merge

    return bench_merge.compare(peers, work, folder, name)


if __name__ == "__main__":
    main()
