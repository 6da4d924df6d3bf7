"""Weights in 8-bit floats: what is scaled by what, and what is refused.

Whole checkpoints are compared with the converter in test_forms.py.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import zoo_build

from gpukit.conversion.run import run_plan
from gpukit.errors import CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.models.fp8 import Scale, find_scales, read_scale, scaled
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

BLOCKS = {"quant_method": "fp8", "weight_block_size": [4, 6]}


def checkpoint(
    folder: Path, settings: Any, scale: torch.Tensor | None, name: str = "a.weight_scale_inv"
) -> Checkpoint:
    """One weight of 10 x 14 in 8-bit floats with its scale."""
    weight = torch.linspace(-400, 400, 140).view(10, 14).to(torch.float8_e4m3fn)
    tensors = {"a.weight": weight, "a.activation_scale": torch.ones(1), "b.weight": torch.ones(2)}
    if scale is not None:
        tensors[name] = scale
    save_file(tensors, folder / "model.safetensors")
    config = {} if settings is None else {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


def values(source: Checkpoint, rows: slice = slice(None)) -> torch.Tensor:
    """The weight as it is read, from some row on."""
    found = find_scales(source)
    weight = source.tensors["a.weight"]
    data = bytearray(weight.nbytes)
    source.read_into(weight, memoryview(data))
    stored = torch.frombuffer(data, dtype=torch.float8_e4m3fn).view(10, 14)
    scale = found.by_weight["a.weight"]
    return scaled(stored[rows], rows.start or 0, scale, read_scale(source, scale))


@pytest.mark.parametrize(
    ("settings", "scale", "name"),
    [
        (BLOCKS, torch.rand(3, 3), "a.weight_scale_inv"),
        (BLOCKS, torch.rand(3, 3).to(torch.bfloat16), "a.weight_scale_inv"),
        (BLOCKS, torch.tensor(0.25), "a.weight_scale_inv"),
        ({"quant_method": "fp8"}, torch.tensor([0.3]), "a.qscale_weight"),
        ({"quant_method": "fbgemm_fp8"}, torch.rand(10, 1), "a.weight_scale"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, torch.rand(10), "a.weight_scale"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"group_0": {"weights": {"block_structure": "4x6"}}},
            },
            torch.rand(3, 3),
            "a.weight_scale",
        ),
        (None, torch.rand(10), "a.weight_scale"),
    ],
)
def test_every_value_has_its_scale(
    settings: Any, scale: torch.Tensor, name: str, tmp_path: Path
) -> None:
    with checkpoint(tmp_path, settings, scale, name) as source:
        whole = values(source)
        assert torch.equal(values(source, slice(5, 9)), whole[5:9])
        assert "a.activation_scale" in find_scales(source).unused
    weight = torch.linspace(-400, 400, 140).view(10, 14).to(torch.float8_e4m3fn)
    for row in range(10):
        for column in range(14):
            if scale.shape == (3, 3):
                factor = scale[row // 4, column // 6]
            else:
                factor = scale.view(-1)[row if scale.numel() > 1 else 0]
            assert whole[row, column] == weight[row, column].float() * factor.float()


def test_modelopt_has_a_file_of_its_own(tmp_path: Path) -> None:
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(settings))
    with checkpoint(tmp_path, None, torch.tensor(2.0), "a.weight_scale") as source:
        scale = find_scales(source).by_weight["a.weight"]
        assert scale == Scale(source.tensors["a.weight_scale"], 10, 14)


def test_8_bit_floats_without_any_scale_are_what_they_are(tmp_path: Path) -> None:
    with checkpoint(tmp_path, None, None) as source:
        assert find_scales(source).by_weight == {}


@pytest.mark.parametrize(
    ("settings", "scale", "words"),
    [
        (BLOCKS, None, r"a\.weight is F8_E4M3 without a a\.weight_scale_inv"),
        (BLOCKS, torch.rand(3, 4), r"shape \[3, 4\], .*a\.weight of \[10, 14\] in blocks of 4 x 6"),
        ({"quant_method": "fp8"}, torch.rand(3, 3), r"shape \[3, 3\], .*of \[10, 14\]$"),
        (BLOCKS, torch.ones(3, 3, dtype=torch.int8), "weight_scale_inv is I8; F32"),
        ({**BLOCKS, "weight_block_size": [4]}, torch.rand(3, 3), r"blocks of \[4\]; two sizes"),
        ({**BLOCKS, "weight_block_size": [4, 0]}, torch.rand(3, 3), r"blocks of \[4, 0\]"),
        ({"quant_method": "gptq", "bits": 4}, torch.rand(10), r"quantised \(gptq\)"),
        ({"bits": 4}, torch.rand(10), r"quantised \(unknown\)"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            torch.rand(10),
            r"\(compressed-tensors, pack-quantized\)",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, torch.rand(10), "NVFP4"),
    ],
)
def test_what_cannot_be_read(
    settings: Any, scale: torch.Tensor | None, words: str, tmp_path: Path
) -> None:
    with checkpoint(tmp_path, settings, scale) as source:
        with pytest.raises(CheckpointError, match=words) as caught:
            find_scales(source)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{tmp_path}/")


def test_stacked_experts_are_scaled_each_in_slabs_of_any_size(tmp_path: Path) -> None:
    plain, scaled_by = (
        zoo_build.build("mixtral-12", tmp_path / "a"),
        zoo_build.build("mixtral-12", tmp_path / "b"),
    )
    source = random.Random(1)
    wide, narrow = zoo_build.tensors("mixtral-12"), zoo_build.tensors("mixtral-12")
    for name in [name for name in wide if ".experts." in name]:
        weight = (4 * wide[name].float()).to(torch.float8_e4m3fn)
        rows, columns = (-(-size // 24) for size in weight.shape)
        scale = torch.tensor([source.random() for _ in range(rows * columns)]).view(rows, columns)
        each = scale.repeat_interleave(24, 0).repeat_interleave(24, 1)
        wide[name] = weight.float() * each[: weight.shape[0], : weight.shape[1]]
        narrow |= {name: weight, f"{name}_scale_inv": scale}
    save_file(wide, plain / "model.safetensors")
    save_file(narrow, scaled_by / "model.safetensors")
    path = scaled_by / "config.json"
    settings = {"quant_method": "fp8", "weight_block_size": [24, 24]}
    config = {**json.loads(path.read_text()), "quantization_config": settings}
    path.write_text(json.dumps(config))
    found = []
    for folder, budget in ((plain, 1 << 30), (scaled_by, 1 << 30), (scaled_by, 1 << 16)):
        with open_source(folder) as opened:
            plan = plan_quantize(opened, "F32")
            result = run_plan(opened, plan, tmp_path / "x.gguf", budget=budget, digest=True)
        found.append(result.digest)
    assert found[0] == found[1] == found[2]
