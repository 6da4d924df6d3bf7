"""A mutation fuzzer for adapters: adapter_config.json, the names and shapes of their tensors, and
the bytes of their weights.

    PYTHONPATH=tests .venv/bin/python -m support.fuzz_adapters 5000 [SEED]

Every adapter is either fitted to its base and merged, or refused with a `GpukitError` of one line,
in little time and memory. The same count and seed make the same adapters everywhere.
"""

import json
import random
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.adapters import ATTENTION, LINEAR, base_of, quiet, train
from support.fuzz_folders import mutate
from support.fuzzing import resident, run, watched

from gpukit.adapters.base import Base
from gpukit.adapters.delta import merged
from gpukit.adapters.opening import open_adapter
from gpukit.errors import GpukitError

SECONDS = 20.0
RESIDENT = 512 << 20
WORDS = (
    "lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector", "base_layer", "weight", "bias",
    "token_adapter", "trainable_tokens_delta", "model", "layers", "0", "1", "9", "-1", "experts",
    "embed_tokens", "lm_head", "q_proj", "gate_up_proj", "lora_a", "lora_b", "m", "",
    "\ud7ff", "\0",
)  # fmt: skip
SEEDS = {
    "llama-biases": {
        "r": 2, "target_modules": [*LINEAR, "embed_tokens"], "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"k_proj": 2}, "modules_to_save": ["norm", "lm_head"], "bias": "all",
    },
    "llama-tied": {
        "r": 1, "target_modules": ["v_proj"], "trainable_token_indices": [1, 2], "use_dora": True
    },
    "mixtral": {
        "r": 2, "target_modules": ATTENTION,
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
}  # fmt: skip


def seeds(root: Path) -> list[tuple[Path, Base]]:
    """Sound adapters and their bases; the last one is of mlx-lm."""
    found = []
    for family, config in SEEDS.items():
        made = train(root / family, family, config)
        found.append((made.adapter, base_of(made.base)))
    folder = root / "mlx"
    folder.mkdir()
    shapes = {"self_attn.q_proj": (16, 16), "mlp.up_proj": (16, 24)}
    tensors = {}
    for module, (width, rows) in shapes.items():
        name = f"model.layers.0.{module}"
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = (
            torch.ones(width, 2),
            torch.ones(2, rows),
        )
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 1.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return [*found, (folder, found[0][1])]


def change_tensors(chooser: random.Random, path: Path) -> None:
    """One to three tensors get other names or shapes, go away or appear twice."""
    tensors = load_file(path)
    for _ in range(chooser.choice((1, 1, 2, 3))):
        name = chooser.choice(sorted(tensors) or ["x"])
        values = tensors.pop(name, torch.zeros(2, 2))
        kind = chooser.randrange(6)
        parts = name.split(".")
        at = chooser.randrange(len(parts))
        if kind == 0:
            parts[at] = chooser.choice(WORDS)
        elif kind == 1:
            parts.insert(at, chooser.choice(WORDS))
        elif kind == 2:
            del parts[at]
        elif kind == 3:
            sizes = [*values.shape]
            sizes[chooser.randrange(len(sizes))] = chooser.choice((0, 1, 2, 3, 17, 64))
            values = torch.ones(sizes)
        elif kind == 4:
            values = values.view(-1) if chooser.random() < 0.5 else values[None]
        if kind < 5:
            tensors[".".join(parts)] = values.contiguous()
    save_file({name: values.clone() for name, values in tensors.items()}, path)


def judge(folder: Path, base: Base) -> str:
    """How it went, "merged" or "refused"; `AssertionError` where it broke a promise."""
    start, outcome = time.perf_counter(), "refused"
    try:
        with open_adapter(folder, base) as adapter:
            outcome = "merged"
            for name, records in adapter.deltas.items():
                merged(torch.ones(base.with_head.tensors[name]), records)
            assert all(line.isprintable() for line in adapter.warnings), adapter.warnings
    except GpukitError as error:
        message = str(error)
        assert message.isprintable(), f"unprintable: {message!r}"
        assert len(message) < 3000, f"long: {message[:300]!r}"
    seconds = time.perf_counter() - start
    assert seconds < SECONDS, f"{seconds:.1f} s"
    return outcome


def fuzz(count: int, seed: int) -> Counter[str]:
    """Try `count` adapters; how many were merged and refused, by what was changed.

    Raises what should not have been raised, with the mutant's number and file in a note.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, quiet():
        sound = seeds(Path(name))
        for folder, base in sound:
            assert judge(folder, base) == "merged", folder
        most = resident()
        for number in range(count):
            chooser = random.Random(f"{seed} {number}")
            folder, base = sound[number % len(sound)]
            config, (weights,) = folder / "adapter_config.json", folder.glob("*.safetensors")
            what = chooser.choice(("config", "config", "tensors", "tensors", "bytes"))
            path = config if what == "config" else weights
            before = path.read_bytes()
            if what == "tensors":
                change_tensors(chooser, path)
            else:
                path.write_bytes(mutate(chooser, before, path.name))
            shown = path.read_bytes()[:3000]
            mutant = partial(
                "{} of seed {}: {} {}: {!r}".format, number, seed, folder.name, what, shown
            )
            with watched(SECONDS, mutant):
                outcomes[f"{what} {judge(folder, base)}"] += 1
                assert resident() - most < RESIDENT, "too much memory"
            path.write_bytes(before)
    return outcomes


if __name__ == "__main__":
    run(fuzz)
