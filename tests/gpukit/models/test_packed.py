"""Weights in small packed numbers: the files that llama.cpp's converter makes of them, and what
they decode to by the formats' definitions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden_makers.converter import convert
from support.loras import lora
from support.packed import FORMS, build_decoded, build_packed
from support.peer_trees import for_each_tree, needs_tree
from support.zoo import ZOO

import gpukit
from gpukit import Options
from gpukit.conversion.run import run_plan
from gpukit.errors import AdapterError, CheckpointError, GGUFError
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.generation.loading import load_model
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

# Rows that move, and stacks of experts, whose numbers are counted or not.
MODELS = (
    *(("mistral-small", form) for form in FORMS),
    *(("qwen3-moe", form) for form in ("modelopt", "nvfp4-packed", "pack-4", "gptq-4")),
    ("glm4-moe", "modelopt"),
)
BLOCKS = ("modelopt", "nvfp4-packed")
NVFP4 = (*BLOCKS, "modelopt-w4a16")
KINDS = ("auto", "f32")


@for_each_tree
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints, and beside them the converter's files."""
    root = tmp_path_factory.mktemp("packed")
    jobs, pre = [], {}
    for animal, form in MODELS:
        folder = build_packed(animal, form, root)
        pre[folder] = ZOO[animal].pre
        jobs += [(folder, folder.with_suffix(f".{kind}.gguf"), kind) for kind in KINDS]
    convert(request.param, jobs, pre)
    return root


@pytest.mark.peer
@needs_tree
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("animal", "form"), MODELS)
def test_files_are_the_converters(animal: str, form: str, kind: str, place: Path) -> None:
    folder = place / form / animal
    theirs, ours = folder.with_suffix(f".{kind}.gguf"), folder.with_suffix(".ours.gguf")
    asked = None if kind == "auto" else kind.upper()
    gpukit.convert(folder, ours, asked, pre=ZOO[animal].pre)
    assert ours.read_bytes() == theirs.read_bytes()


def floats(model: Path, pre: str | None, out: Path, budget: int = 1 << 30) -> dict[str, bytes]:
    """The tensors of `model` as a GGUF of float32 `out`."""
    with open_source(model, pre) as source:
        run_plan(source, plan_quantize(source, "F32", Options(carry=False)), out, budget=budget)
    with GGUFFile(out) as file:
        assert {tensor.type for tensor in file.tensors.values()} == {"F32"}
        return {name: file.read(tensor).tobytes() for name, tensor in file.tensors.items()}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("animal", "form"),
    [
        *(("mistral-small", form) for form in FORMS if form not in (*BLOCKS, "gptq-8", "pack-8")),
        *(("qwen3-moe", form) for form in BLOCKS),
    ],
)
def test_values_are_those_of_the_definition(animal: str, form: str, tmp_path: Path) -> None:
    folder, pre = build_packed(animal, form, tmp_path), ZOO[animal].pre
    wanted = floats(build_decoded(folder, form, tmp_path), pre, tmp_path / "wanted.gguf")
    assert floats(folder, pre, tmp_path / "found.gguf", budget=1 << 16) == wanted
    carried = tmp_path / "carried.gguf"
    result = gpukit.convert(folder, carried, pre=pre)
    types = {total.type for total in result.totals}
    if form not in NVFP4:
        assert types == {"BF16", "F32"}
        return
    assert "NVFP4" in types
    with GGUFFile(carried) as file:
        assert file.get("general.file_type") == 39
        assert {name.rpartition(".")[2] for name in file.tensors} >= {"scale", "input_scale"}
    # The scales are in the values then.
    assert floats(carried, None, tmp_path / "again.gguf") == wanted
    assert gpukit.verify(tmp_path / "again.gguf", carried).equal


@pytest.mark.parametrize("animal", ["mistral-small", "qwen3-moe"])
def test_a_model_runs_with_its_scales(animal: str, tmp_path: Path) -> None:
    folder, pre = build_packed(animal, "modelopt", tmp_path), ZOO[animal].pre
    carried, whole = tmp_path / "carried.gguf", tmp_path / "whole.gguf"
    gpukit.convert(folder, carried, pre=pre)
    floats(folder, pre, whole)
    tokens = list(range(3, 40))
    logits = []
    for path, own in ((carried, None), (whole, None), (folder, pre)):
        decoder = load_model(path, "cpu", own).decoder
        logits.append(decoder.forward(tokens, decoder.cache(len(tokens)), every=True))
    largest = logits[1].abs().max()
    assert largest > 0.1
    # Sums of the same products in another order.
    assert (logits[0] - logits[1]).abs().max() < 1e-4 * largest
    assert (logits[2] - logits[1]).abs().max() < 1e-4 * largest


def changed(folder: Path, name: str, value: torch.Tensor | None) -> None:
    """Put `value` in the place of the tensor `name`, or remove it."""
    found = load_file(folder / "model.safetensors")
    del found[name]
    save_file(found if value is None else {**found, name: value}, folder / "model.safetensors")


AT = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("form", "name", "value", "words"),
    [
        ("modelopt", "weight_scale", torch.ones(512, 3).to(torch.float8_e4m3fn),
         r"up_proj\.weight_scale is F8_E4M3 \[512, 3\]; \[512, 16\] fits"),
        ("modelopt", "weight_scale_2", torch.rand(2), r"F32 \[2\]; one number is needed"),
        ("pack-4", "weight_shape", None, r"weight_packed without .*up_proj\.weight_shape"),
        ("pack-4", "weight_shape", torch.tensor([512, 0]), r"is \[512, 0\]; two sizes"),
        ("pack-4", "weight_shape", torch.tensor([512, 300]), r"rows of 300; of the bits .* \(4\)"),
        ("pack-4", "weight_shape", torch.tensor([511, 256]), r"\[511, 32\] fits"),
        ("pack-4", "weight_scale", torch.ones(512, 7), r"\[512, 7\], which does not fit"),
        ("pack-4", "weight_scale", torch.ones(512, 8).int(), "F32 or BF16 or F16 fits"),
        ("pack-4-zeros", "weight_zero_point", torch.ones(64, 7).int(), r"\[64, 8\] of I32 fits"),
        ("int-8", "weight_scale", torch.ones(7, 1), r"\[7, 1\], which does not fit"),
        ("gptq-4", "g_idx", None, r"qweight without .*up_proj\.g_idx"),
        ("gptq-4", "scales", torch.ones(8, 511), r"\[8, 512\] of .* fits"),
        ("gptq-4", "qzeros", torch.ones(8, 63).int(), r"\[8, 64\] of I32 fits"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(
    form: str, name: str, value: Any, words: str, tmp_path: Path
) -> None:
    folder = build_packed("mistral-small", form, tmp_path)
    changed(folder, AT + name, value)
    with pytest.raises(CheckpointError, match=words) as caught:
        gpukit.plan(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/")


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    folder = build_packed("mistral-small", "gptq-4", tmp_path)
    changed(folder, f"{AT}g_idx", torch.full((256,), 8, dtype=torch.int32))
    with pytest.raises(CheckpointError, match="g_idx names groups 8 to 8 of 8"):
        gpukit.convert(folder, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "awq", "bits": 4}, r"quantised \(awq\), and not in a way"),
        ({"quant_method": "gptq", "bits": 3}, r"bits is 3; GPTQ of 2, 4, 8 bits"),
    ],
)
def test_ways_that_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = build_packed("mistral-small", "gptq-4", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        gpukit.plan(folder)


def test_a_scale_that_does_not_fit_its_blocks(tmp_path: Path) -> None:
    folder = build_packed("mistral-small", "modelopt", tmp_path)
    carried, wrong = tmp_path / "carried.gguf", tmp_path / "wrong.gguf"
    gpukit.convert(folder, carried)
    with open_source(carried) as source:
        plan = plan_quantize(source)
        outputs = [
            replace(o, spec=replace(o.spec, type="F16")) if o.spec.name.endswith(".scale") else o
            for o in plan.outputs
        ]
        run_plan(source, replace(plan, outputs=tuple(outputs)), wrong)
    with pytest.raises(GGUFError, match=r"scale is 1 values of F16; one of F32 belongs to blk"):
        gpukit.plan(wrong)


def test_blocks_that_are_merged_lose_their_scale_and_it_is_told(tmp_path: Path) -> None:
    folder = build_packed("mistral-small", "modelopt", tmp_path)
    adapter = lora(build_decoded(folder, "modelopt", tmp_path), tmp_path / "lora")
    with pytest.raises(AdapterError, match=r"packed numbers .* to a GGUF first"):
        gpukit.plan(folder, adapters=[adapter])
    carried = tmp_path / "carried.gguf"
    gpukit.convert(folder, carried)
    with gpukit.plan(carried, adapters=[adapter]) as plan:
        told = [line for line in plan.warnings if "without the scale for the whole" in line]
        assert not any(".scale" in output.spec.name for output in plan.outputs)
    assert len(told) == 1
    assert told[0].startswith("7 tensors (")
    assert told[0].endswith("give --type F16, and quantise that")
    with gpukit.plan(carried) as plan:
        assert not any("without the scale" in line for line in plan.warnings)


@pytest.mark.parametrize("form", ["int-8", "gptq-4"])
def test_adapters_go_into_a_gguf_of_it(form: str, tmp_path: Path) -> None:
    folder = build_packed("mistral-small", form, tmp_path)
    adapter = lora(build_decoded(folder, form, tmp_path), tmp_path / "lora")
    with pytest.raises(AdapterError, match=r"packed numbers .* to a GGUF first"):
        gpukit.convert(folder, tmp_path / "out.gguf", adapters=[adapter])
    gpukit.convert(folder, tmp_path / "whole.gguf", "F16")
    result = gpukit.convert(tmp_path / "whole.gguf", tmp_path / "out.gguf", adapters=[adapter])
    assert result.changes
