"""Files with types of codebooks and ternary ones: they are shown, loaded and run as what they
decode to."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support import quant_kinds
from support.checkpoints import DATA
from support.command_line import gpukit

from gpukit.conversion.run import run_plan
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.generation.generate import GenerateOptions, stream
from gpukit.generation.loading import load_model
from gpukit.generation.sampling import SamplingOptions
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit_kernels import QUANTS, dequantize

TYPES = [name for name in QUANTS if name.startswith(("IQ1", "IQ2", "IQ3", "TQ"))]
# The embedding is read by rows, the other matrices by products.
NAMES = ["token_embd.weight", *(f"blk.{i}.{part}.weight" for part in ("ffn_down", "attn_q")
                                for i in range(4))]  # fmt: skip
PLACED = dict(zip(NAMES, TYPES, strict=True))
PROMPT = [1, 300, 17, 1999]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with a matrix of every such type, and the same model with those matrices in F32."""
    folder = tmp_path_factory.mktemp("read-only")
    with open_source(DATA / "tiny-shakespeare") as source:
        run_plan(source, plan_quantize(source, "F16"), folder / "f16.gguf")
    blocks: dict[str, torch.Tensor] = {}
    with GGUFFile(folder / "f16.gguf") as file:
        for name, kind in PLACED.items():
            width, rows = file.tensors[name].ne
            # Magnitudes as in the model itself, so that no layer drowns the others.
            found = quant_kinds.random_blocks(kind, rows * width // 256, least=0.02)
            blocks[name] = torch.from_numpy(found).view(rows, -1)
    decoded = {name: dequantize(found, PLACED[name]) for name, found in blocks.items()}
    mixed = _replaced(folder, "mixed", {n: (PLACED[n], b.numpy()) for n, b in blocks.items()})
    return mixed, _replaced(folder, "f32", {n: ("F32", v.numpy()) for n, v in decoded.items()})


def _replaced(folder: Path, stem: str, others: Mapping[str, tuple[str, np.ndarray]]) -> Path:
    """f16.gguf with other types and bytes of some tensors, as another file."""
    out = folder / f"{stem}.gguf"
    with GGUFFile(folder / "f16.gguf") as file:
        kinds = {
            info.name: others.get(info.name, (info.type,))[0] for info in file.tensors.values()
        }
        specs = [TensorSpec(i.name, i.ne, kinds[i.name]) for i in file.tensors.values()]
        with GGUFWriter(out, list(file.fields.values()), specs) as writer:
            for index, info in enumerate(file.tensors.values()):
                data = others[info.name][1] if info.name in others else file.read(info)
                writer.write(index, data.tobytes())
    return out


def test_they_run_as_what_they_decode_to(files: tuple[Path, Path]) -> None:
    mixed, floats = (load_model(path, "cpu") for path in files)
    got, wanted = (m.decoder.forward(PROMPT, m.decoder.cache(8)) for m in (mixed, floats))
    # The same products, added up in another order: float32 keeps them to some 1e-6 a layer.
    assert wanted.std() > 0
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()
    options = GenerateOptions(SamplingOptions(temperature=0.0), num_predict=12)
    texts = [stream(each, PROMPT, options).result for each in (mixed, floats)]
    assert texts[0].tokens == texts[1].tokens


def _gpukit(*words: str) -> str:
    done = gpukit(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inspect_and_run_know_them(files: tuple[Path, Path]) -> None:
    shown = json.loads(_gpukit("inspect", str(files[0]), "--json"))
    kinds = {tensor["name"]: tensor["type"] for tensor in shown["tensors"]}
    assert PLACED.items() <= kinds.items()
    said = [
        _gpukit("run", str(path), "Hear", "--temperature", "0", "--num-predict", "8")
        for path in files
    ]
    assert said[0] == said[1]
