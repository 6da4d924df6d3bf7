"""Experts of gpt-oss as a GGUF has them: blocks of MXFP4, transposed and interleaved matrices."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import save_shards
from support.loras import lora
from support.zoo_build import build, tensors

from gpukit.conversion.run import run_plan
from gpukit.errors import AdapterError, ArgumentError, CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.models.importer import plan_import
from gpukit.planning.planner import plan_quantize
from gpukit.sources.checkpoint import CheckpointSource
from gpukit.sources.gguf import GGUFSource
from gpukit.sources.merged import Chosen, Merge
from gpukit.sources.opening import open_source

GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"
# What the codes of MXFP4 stand for.
LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 2) * torch.tensor([1.0] * 8 + [-1.0] * 8)


def matrices(found: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """float32 `[experts, rows, width]` of a matrix of experts, in blocks or transposed floats."""
    if name in found:
        return found[name].float().transpose(1, 2)
    codes = found[f"{name}_blocks"]
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)  # the first in the lower half
    scales = 2.0 ** (found[f"{name}_scales"].double() - 127)
    return (LEVELS[both.long()] * scales[..., None]).float().flatten(-2)


def rows_of(
    source: CheckpointSource, name: str, pieces: Callable[[int], list[int]]
) -> torch.Tensor:
    """The rows of a tensor, read in pieces of so many."""
    index = next(i for i, tensor in enumerate(source.tensors) if tensor.name == name)
    parts, row = [], 0
    for count in pieces(source.tensors[index].rows):
        parts.append(source.float_rows(index, row, count))
        row += count
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["gpt-oss-otherwise", "gpt-oss-bf16"])
def test_rows_in_pieces(name: str, tmp_path: Path) -> None:
    found = tensors(name)
    gate_up, down = matrices(found, GATE_UP), matrices(found, DOWN)
    wanted = {
        "ffn_gate_exps.weight": gate_up[:, ::2],
        "ffn_up_exps.weight": gate_up[:, 1::2],
        "ffn_down_exps.weight": down,
        "ffn_gate_exps.bias": found[f"{GATE_UP}_bias"].float()[:, ::2],
        "ffn_up_exps.bias": found[f"{GATE_UP}_bias"].float()[:, 1::2],
        "ffn_down_exps.bias": found[f"{DOWN}_bias"].float(),
    }
    with CheckpointSource(build(name, tmp_path), "gpt-4o") as source:
        for key, values in wanted.items():
            lines = values.reshape(-1, values.shape[-1])
            for size in (1, 7, len(lines)):  # some across experts, the last all at once

                def pieces(rows: int, size: int = size) -> list[int]:
                    return [size] * (rows // size) + [rows % size] * (rows % size > 0)

                assert torch.equal(rows_of(source, f"blk.0.{key}", pieces), lines), (key, size)


def test_the_files_that_hold_blocks_and_scales_do_not_matter(tmp_path: Path) -> None:
    plain, dealt = build("gpt-oss-otherwise", tmp_path), build("gpt-oss-otherwise", tmp_path / "b")
    (dealt / "model.safetensors").unlink()
    save_shards(dealt, tensors("gpt-oss-otherwise"), 2)
    files = []
    for folder in (plain, dealt):
        with open_source(folder, "gpt-4o") as source:
            run_plan(source, plan_quantize(source), folder / "x.gguf")
        files.append(GGUFSource(folder / "x.gguf"))
    found = [
        {t.name: file.float_rows(i, 0, t.rows) for i, t in enumerate(file.tensors)}
        for file in files
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(values, found[1][name]) for name, values in found[0].items())
    for file in files:
        file.close()


def _small(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{DOWN}_scales": None}, r"down_proj_blocks without .*down_proj_scales; fetch"),
        ({f"{DOWN}_blocks": None}, r"down_proj_scales without .*down_proj_blocks; fetch"),
        ({f"{DOWN}_scales": _small((4, 256, 4))}, r"\[4, 256, 8, 16\], .*scales \[4, 256, 4\];"),
        ({f"{DOWN}_scales": _small((4, 256, 8), torch.int8)}, "down_proj_scales is I8; U8 is"),
        (
            {f"{GATE_UP}_blocks": _small((4, 511, 8, 16)),
             f"{GATE_UP}_scales": _small((4, 511, 8))},
            r"shape \[4, 511, 8, 16\]",
        ),
        ({f"{GATE_UP}_bias": _small((4, 511), torch.bfloat16)}, r"\[4, 511\]; 2 dimensions are n"),
        (
            {f"{GATE_UP}_blocks": None, f"{GATE_UP}_scales": None,
             GATE_UP: _small((4, 256, 512), torch.int8)},
            "gate_up_proj is I8; experts of gpt-oss can be imported in MXFP4, BF16",
        ),
        ({DOWN: _small((4, 256, 256), torch.bfloat16)}, "are one tensor of gpt-oss, .*; remove"),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit(
    changes: dict[str, torch.Tensor | None], words: str, tmp_path: Path
) -> None:
    folder, found = build("gpt-oss", tmp_path), tensors("gpt-oss")
    found |= {key: values for key, values in changes.items() if values is not None}
    kept = {key: v for key, v in found.items() if changes.get(key, v) is not None}
    save_file(kept, folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=words) as caught:
        plan_import(checkpoint, pre="gpt-4o")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blocks_are_quantised_again_only_where_that_is_allowed(tmp_path: Path) -> None:
    with open_source(build("gpt-oss", tmp_path), "gpt-4o") as source:
        assert plan_quantize(source, "F32").file_type.name == "MXFP4_MOE"
        with pytest.raises(ArgumentError, match=r"keeps it is the type MXFP4_MOE, .*_exps=MXFP4"):
            plan_quantize(source, "Q4_K_M")


def test_adapters_of_attention_are_merged_beside_blocks(tmp_path: Path) -> None:
    folder = build("gpt-oss", tmp_path)
    adapter = lora(folder, tmp_path / "lora", targets=("q_proj",))
    merge = Merge((Chosen(adapter),))
    with open_source(folder, "gpt-4o") as plain, open_source(folder, "gpt-4o", merge) as merged:
        names = [tensor.name for tensor in merged.tensors]
        for index, name in enumerate(names):
            rows = plain.tensors[index].rows
            found, before = (s.float_rows(index, 0, rows) for s in (merged, plain))
            assert torch.equal(found, before) == ("attn_q.weight" not in name), name
            assert merged.passes(index, "MXFP4") == name.endswith("_exps.weight")


def test_adapters_of_experts_are_refused_where_rows_would_move(tmp_path: Path) -> None:
    folder = build("gpt-oss-bf16", tmp_path)
    factors = {
        "base_model.model.model.layers.0.mlp.experts.lora_A.weight": torch.ones(3 * 4, 96),
        "base_model.model.model.layers.0.mlp.experts.lora_B.weight": torch.ones(320, 3 * 4),
    }
    (tmp_path / "lora").mkdir()
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [],
            "target_parameters": ["mlp.experts.gate_up_proj"],
        })
    )  # fmt: skip
    merge = Merge((Chosen(tmp_path / "lora"),))
    with pytest.raises(AdapterError, match=r"changes .*gate_up_proj, .*merge it into a folder"):
        open_source(folder, "gpt-4o", merge)
