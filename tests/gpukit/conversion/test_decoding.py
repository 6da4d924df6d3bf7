"""From every quantised type back to floats, in a GGUF and in safetensors: gguf-py's values."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from support import quant_kinds
from support.zoo import ZOO
from support.zoo_build import build

import gpukit
from gpukit.conversion.run import run_plan
from gpukit.events import Event, Warned
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit_kernels import QUANTS

TYPES = [name for name, row in QUANTS.items() if row.block > 1]
ROWS, WIDTH = 4, 512


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with a matrix and two stacked ones of every type."""
    path = tmp_path_factory.mktemp("all") / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in TYPES:
        count = ROWS * WIDTH // QUANTS[name].block
        for lead in ((), (2,)):
            blocks = quant_kinds.random_blocks(name, count * (2 if lead else 1), least=0.01)
            writer.add_tensor(
                f"blk.0.{name}{'_exps' if lead else ''}.weight",
                blocks.reshape(*lead, ROWS, -1),
                raw_dtype=gguf.GGMLQuantizationType[name],
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def decoded(model: Path) -> dict[str, np.ndarray]:
    tensors = gguf.GGUFReader(model).tensors
    return {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in tensors}


def narrowed(values: np.ndarray, kind: str) -> bytes:
    """The bytes of float32 `values` as `kind`."""
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).tobytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_values_are_exact(kind: str, model: Path, tmp_path: Path) -> None:
    expected = decoded(model)
    for out in (tmp_path / "x.gguf", tmp_path / "x.safetensors"):
        with open_source(model) as source:
            run_plan(source, plan_quantize(source, kind), out)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert tensors.keys() == expected.keys()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(file.keys()) == expected.keys()
        for name, values in expected.items():
            wanted = narrowed(values, kind)
            assert tensors[name].tensor_type.name == kind
            assert np.ascontiguousarray(tensors[name].data).tobytes() == wanted, name
            stored = file.get_tensor(name)
            assert tuple(stored.shape) == values.shape
            assert stored.view(torch.uint8).numpy().tobytes() == wanted, name


def test_a_folder_with_blocks_straight_to_safetensors(tmp_path: Path) -> None:
    folder, name = build("gpt-oss-otherwise", tmp_path), "blk.0.ffn_down_exps.weight"
    pre = ZOO[folder.name].pre
    carried, out = tmp_path / "carried.gguf", tmp_path / "x.safetensors"
    gpukit.convert(folder, carried, pre=pre)
    gpukit.convert(carried, tmp_path / "y.safetensors", "BF16")
    heard: list[Event] = []
    gpukit.convert(folder, out, pre=pre, report=heard.append)  # its own type
    told = [event.text for event in heard if isinstance(event, Warned)]
    assert any(text.startswith("a safetensors file has the names") for text in told)
    gpukit.quantize(folder, tmp_path / "z.safetensors", "BF16", pre=pre)
    with safe_open(out, "pt") as one, safe_open(tmp_path / "y.safetensors", "pt") as other:
        assert one.keys() == other.keys()
        assert torch.equal(one.get_tensor(name), other.get_tensor(name))
    assert out.read_bytes() == (tmp_path / "z.safetensors").read_bytes()
    heard.clear()
    many = gpukit.convert_many(
        folder, tmp_path / "{type}.safetensors", ["BF16", "F16"], pre=pre, report=heard.append
    )
    assert many[0].path.read_bytes() == out.read_bytes()
    assert sum(isinstance(event, Warned) for event in heard) >= 1
