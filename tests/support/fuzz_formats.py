"""A mutation fuzzer for the readers of GGUF, safetensors and PyTorch files.

    PYTHONPATH=tests .venv/bin/python -m support.fuzz_formats 20000 [SEED]

Every mutant is either read whole or refused with a `FormatError` of one line, in little time and in
memory that its own size bounds. The same count and seed make the same mutants everywhere. A hang
ends the process with a traceback.
"""

import io
import json
import random
import struct
import tempfile
import time
import tracemalloc
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from support.fuzzing import resident, run, watched

from gpukit.errors import FormatError
from gpukit.formats.gguf_fields import (
    Field,
    TensorSpec,
    ValueType,
    array,
    boolean,
    f32,
    string,
    u32,
    u64,
)
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.pytorch import PytorchFile
from gpukit.formats.safetensors import SafetensorsFile

# What a reader may take for a file of n bytes: objects weigh more than the bytes they come from
# (a list of bytes eight times as much, twice while it is built), and a constant for the rest.
PER_BYTE = 40
CONSTANT = 1 << 20
# Mutants are a few kilobytes; a loaded machine gets time, a loop over a claimed count does not.
SECONDS = 10.0
# What all mutants together may add to the process, native libraries included.
RESIDENT = 256 << 20

NUMBERS = (0, 1, 2, 31, 32, 33, 63, 64, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 24, 1 << 30)
LARGE = ((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63)
EXTREMES = (*NUMBERS, *LARGE, (1 << 64) - 8, (1 << 64) - 1)
WORDS = (
    b"null", b"true", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'"F32"', b"9" * 30, b"9" * 5000,
    b"[" * 3000, b'"\\ud800"', b'"data_offsets"', b'"__metadata__"', b"\0", b"\xff\xfe", b",", b"}",
)  # fmt: skip


def gguf_seed(folder: Path) -> bytes:
    """A small file with every kind of value and several kinds of tensors."""
    fields = [
        string("general.architecture", "llama"),
        u32("general.alignment", 32),
        u64("big", 1 << 40),
        f32("eps", 1e-5),
        boolean("flag", True),
        Field("byte", ValueType.UINT8, 7),
        array("tokens", ValueType.STRING, ["<s>", "", "▁the", "x" * 40]),
        array("scores", ValueType.FLOAT32, [0.5] * 9),
        array("flags", ValueType.BOOL, [True, False, True]),
        array("bytes", ValueType.UINT8, list(range(100))),
    ]
    tensors = [
        TensorSpec("token_embd.weight", (256, 2), "Q4_K"),
        TensorSpec("blk.0.norm", (5,), "F32"),
        TensorSpec("empty", (0,), "F32"),
        TensorSpec("output", (32, 2, 2), "Q8_0"),
    ]
    path = folder / "seed.gguf"
    with GGUFWriter(path, fields, tensors) as writer:
        for index, tensor in enumerate(tensors):
            writer.write(index, bytes(tensor.nbytes))
    return path.read_bytes()


def safetensors_seed() -> bytes:
    """A small file with metadata, several dtypes and an empty tensor."""
    sizes = {"a": ("F32", [2, 3], 24), "b": ("BF16", [5], 10), "c": ("I64", [], 8)}
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": "ä"}}
    at = 0
    for name, (dtype, shape, size) in [*sizes.items(), ("n", ("U8", [0], 0))]:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def pytorch_seed(folder: Path) -> bytes:
    """A small archive with several dtypes, a view and an empty tensor."""
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "view": torch.arange(12.0).view(3, 4).t(),
        "fp8": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "n": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    path = folder / "seed.bin"
    torch.save(tensors, path)
    return path.read_bytes()


def mutate(chooser: random.Random, seed: bytes, kind: str) -> bytes:
    """One to four changes: bytes, counts, truncation, blocks swapped, doubled or removed."""
    text = kind == "safetensors"
    data = bytearray(seed)
    if kind == "bin" and chooser.random() < 0.7:
        return _archive(chooser, seed)
    if text and chooser.random() < 0.5:
        data = _header(chooser, seed)
        if chooser.random() < 0.7:
            return bytes(data)
    for _ in range(chooser.choice((1, 1, 1, 2, 3, 4))):
        change(chooser, data, text)
    return bytes(data)


def change(chooser: random.Random, data: bytearray, text: bool) -> None:
    at = chooser.randrange(len(data) + 1)
    # Most of what matters lies in front.
    if chooser.random() < 0.3:
        at = min(at, chooser.randrange(64))
    length = min(chooser.choice((1, 2, 4, 8, 24, 100)), len(data) - at)
    kind = chooser.randrange(8)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at : at + length] = chooser.randbytes(length)
    elif kind == 2 and at < len(data):
        data[at] ^= 1 << chooser.randrange(8)
    elif kind == 3:
        size = chooser.choice((4, 8))
        number = chooser.choice(EXTREMES) % (1 << 8 * size)
        data[at : at + size] = number.to_bytes(size, "little")
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        data[at:at] = data[at : at + length]
    elif kind == 6:
        other = chooser.randrange(len(data) + 1)
        block = bytes(data[other : other + length])
        data[other : other + length], data[at : at + length] = data[at : at + length], block
    elif text:
        _word(chooser, data, at)
    else:
        data += chooser.randbytes(length)


def _archive(chooser: random.Random, seed: bytes) -> bytes:
    """An archive that is whole, with a change inside one of its entries, mostly the pickle."""
    with zipfile.ZipFile(io.BytesIO(seed)) as old:
        entries = {entry: bytearray(old.read(entry)) for entry in old.namelist()}
    names = list(entries)
    pickled = next(name for name in names if name.endswith("data.pkl"))
    name = pickled if chooser.random() < 0.8 else chooser.choice(names)
    for _ in range(chooser.choice((1, 1, 2, 3))):
        change(chooser, entries[name], text=False)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as new:
        for entry, content in entries.items():
            new.writestr(zipfile.ZipInfo(entry), bytes(content))
    return made.getvalue()


def _header(chooser: random.Random, seed: bytes) -> bytearray:
    """A header that is still JSON and has its right length, but says something else."""
    (length,) = struct.unpack_from("<Q", seed)
    header = json.loads(seed[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(chooser.choice((1, 1, 2, 3))):
        entry, other = header[chooser.choice(names)], header[chooser.choice(names)]
        key = chooser.choice(("dtype", "shape", "data_offsets"))
        kind = chooser.randrange(5)
        if kind == 0:
            entry[key], other[key] = other[key], entry[key]
        elif kind == 1:
            entry[key] = chooser.choice((None, [], {}, "F64", "", 1.5, True, -1, [[]], [[1], 2]))
        elif kind == 2:
            entry["shape"] = [chooser.choice(EXTREMES) for _ in range(chooser.randrange(100))]
        elif kind == 3:
            # The same number of values otherwise laid out: such files are well-formed.
            entry["shape"] = [1] * chooser.randrange(4) + _items(entry["shape"])[::-1]
        else:
            at = chooser.randrange(2)
            entry["data_offsets"] = [*_items(entry["data_offsets"]), 0, 0][:2]
            entry["data_offsets"][at] = chooser.choice((*EXTREMES, 8, 10, 24, 34, 42))
    text = json.dumps(header).encode()
    return bytearray(struct.pack("<Q", len(text)) + text + seed[8 + length :])


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _word(chooser: random.Random, data: bytearray, at: int) -> None:
    """Text in the header, whose length then often fits again."""
    old = len(data)
    word = chooser.choice((*WORDS, str(chooser.choice(EXTREMES)).encode()))
    digits = [i for i in range(8, old) if data[i : i + 1].isdigit()]
    if digits and chooser.random() < 0.5:
        at = chooser.choice(digits)
        data[at : at + 1] = word
    else:
        data[max(at, 8) : max(at, 8)] = word
    if old >= 8 and chooser.random() < 0.8:
        (length,) = struct.unpack_from("<Q", data)
        struct.pack_into("<Q", data, 0, (length + len(data) - old) % (1 << 64))


def read_all(path: Path) -> None:
    """Open the file and read every tensor."""
    if path.suffix == ".gguf":
        with GGUFFile(path) as file:
            for info in file.tensors.values():
                assert file.read(info).nbytes == info.nbytes
        return
    with PytorchFile(path) if path.suffix == ".bin" else SafetensorsFile(path) as other:
        for tensor in other.tensors.values():
            other.read_into(tensor, memoryview(bytearray(tensor.nbytes)))


def judge(path: Path) -> str:
    """How reading went, "read" or "refused"; `AssertionError` where it broke a promise."""
    size = path.stat().st_size
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    outcome = "read"
    try:
        read_all(path)
    except FormatError as error:
        outcome = "refused"
        message = str(error)
        assert "\n" not in message, f"several lines: {message!r}"
        assert message.startswith(f"{path}: "), f"no file name: {message!r}"
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] - before
    assert peak <= PER_BYTE * size + CONSTANT, f"{peak} bytes for a file of {size}"
    assert seconds < SECONDS, f"{seconds:.1f} s for a file of {size} bytes"
    return outcome


def fuzz(count: int, seed: int) -> Counter[str]:
    """Try `count` mutants; how many were read and refused, by format.

    Raises what a reader should not have raised, with the mutant's number and bytes in a note.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = {
            "gguf": gguf_seed(folder),
            "safetensors": safetensors_seed(),
            "bin": pytorch_seed(folder),
        }
        for kind, data in seeds.items():
            # Whole files are read, and what libraries load for it is loaded.
            assert _outcome(folder, kind, data) == "read"
        tracemalloc.start()
        most = resident()
        try:
            for number in range(count):
                kind = KINDS[number % len(KINDS)]
                data = mutate(random.Random(f"{seed} {number}"), seeds[kind], kind)
                mutant = partial("mutant {} of seed {}: {!r}".format, number, seed, data)
                with watched(SECONDS, mutant):
                    outcomes[f"{kind} {_outcome(folder, kind, data)}"] += 1
                grown = resident() - most
                assert grown < RESIDENT, f"mutant {number} of seed {seed}: {grown} bytes more"
        finally:
            tracemalloc.stop()
    return outcomes


# Most of them in the formats that nearly all models come in.
KINDS = ("gguf", "safetensors", "gguf", "safetensors", "bin")


def _outcome(folder: Path, kind: str, data: bytes) -> str:
    path = folder / f"mutant.{kind}"
    path.write_bytes(data)
    return judge(path)


if __name__ == "__main__":
    run(fuzz)
