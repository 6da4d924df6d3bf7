"""Mixtral's experts pass through in slabs: never more than one layer's of them in memory."""

import json
import os
import struct
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from support.zoo import ZOO
from support.zoo_build import VOCABULARY, build

from gpukit.formats.gguf_reader import GGUFFile
from gpukit.models.mixtral import read, rules

LAYERS = 3
CONFIG = {
    **ZOO["mixtral-8x7b"].config, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": LAYERS, "max_position_embeddings": 512,
}  # fmt: skip
# The experts of one layer in BF16: 48 MiB.
ONE_LAYER = 8 * 3 * 512 * 2048 * 2
KILOBYTE = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in


def _zeros(folder: Path, other: str) -> Path:
    """A checkpoint of zeros that takes no room on disk: the file is a hole behind its header.
    Tensors with `other` in their names are those of another form."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.model").write_bytes(VOCABULARY.read_bytes())
    header, at = {}, 0
    spans = (span for rule in rules(read(CONFIG)) for span in rule.spans)
    shapes = {span.source: span.shape for span in spans if other not in span.source}
    for source, shape in shapes.items():
        size = 2 * prod(shape)
        header[source] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return folder


# In a process of its own, whose high-water mark no other test has raised.
QUANTISE = """
import resource, sys
from pathlib import Path
from gpukit.conversion.run import run_plan
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

def quantise(folder, out):
    with open_source(Path(folder)) as source:
        run_plan(source, plan_quantize(source, "Q8_0"), Path(out), device="cpu", budget=int(budget))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

small, folder, out, budget = sys.argv[1:]
print(quantise(small, out + ".small"), quantise(folder, out))
"""


@pytest.mark.parametrize("other", [".mlp.", ".block_sparse_moe."])
def test_memory_stays_below_one_layers_experts(other: str, tmp_path: Path) -> None:
    # What libraries take the first time is no experts'.
    small, folder = build("mixtral-8x7b", tmp_path), _zeros(tmp_path / "zeros", other)
    out = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-c", QUANTISE, small, folder, out, str(16 << 20)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = (int(number) * KILOBYTE for number in done.stdout.split())
    with GGUFFile(out) as file:
        experts = [info for info in file.tensors.values() if "_exps." in info.name]
    assert sum(info.n_elements for info in experts) * 2 == LAYERS * ONE_LAYER
    # Measured: 18 MiB.
    assert after - before < ONE_LAYER
