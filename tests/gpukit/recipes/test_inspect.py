"""What `inspect` shows of files and folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import DATA
from support.forms import build
from support.vocabularies import byte_level

from gpukit.conversion.run import run_plan
from gpukit.errors import CheckpointError, GpukitError
from gpukit.formats.gguf_fields import Field, string, u32
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.recipes.inspect import describe
from gpukit.sources.opening import open_source
from gpukit.tokenizer.summary import Named, summarise


def test_a_folder(tmp_path: Path) -> None:
    found = describe(build("chat-templates", tmp_path))
    assert found.format == "checkpoint"
    assert found.architecture == "LlamaForCausalLM"
    assert found.problem is None
    assert {"default", "tool_use"} == found.chat_templates.keys()
    assert found.tokenizer is not None
    assert found.tokenizer.tokens == 2048
    assert [row.type for row in found.totals] == ["BF16"]
    assert json.loads(json.dumps(found.as_json()))["parameters"] == found.elements


def test_a_folder_that_cannot_be_converted_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = build("least", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["LamaForCausalLM"]})
    )
    found = describe(folder)
    assert found.problem is not None
    assert "unknown architecture 'LamaForCausalLM'" in found.problem
    assert "near: LlamaForCausalLM" in found.problem
    assert found.tokenizer is None
    assert len(found.tensors) == 12


def test_scales_and_what_is_left_out_are_no_parameters(tmp_path: Path) -> None:
    plain, fp8 = (describe(build(name, tmp_path)) for name in ("pytorch", "fp8-tensors"))
    assert len(fp8.left_out) == 14
    assert {row.type for row in fp8.totals} == {"F8_E4M3", "BF16"}
    assert fp8.elements == plain.elements
    assert sum(tensor.n_elements for tensor in fp8.tensors) == fp8.elements + 14


def test_files_of_weights(tmp_path: Path) -> None:
    save_file({"b": torch.ones(2, 3), "a": torch.ones(4).half()}, tmp_path / "x.safetensors")
    torch.save(load_file(tmp_path / "x.safetensors"), tmp_path / "x.bin")
    for name in ("x.safetensors", "x.bin"):
        found = describe(tmp_path / name)
        assert {t.name: (t.shape, t.type) for t in found.tensors} == {
            "a": ((4,), "F16"),
            "b": ((2, 3), "F32"),
        }
        assert found.size == (tmp_path / name).stat().st_size


def test_all_parts_of_a_split_gguf(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    with open_source(build("least", tmp_path)) as source:
        plan = plan_quantize(source, "Q8_0", Options(split_max_size=200_000))
        paths = run_plan(source, plan, out).paths
    found = describe(paths[0])
    assert found.files == paths
    assert len(paths) > 1
    assert found.file_type == "Q8_0"
    assert len(found.tensors) == 12


@pytest.mark.parametrize("path", ["missing", "empty", "cut.gguf", "cut.safetensors"])
def test_what_is_no_model(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("cut.gguf", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF\x03")
    with pytest.raises(GpukitError) as caught:
        describe(tmp_path / path)
    assert str(tmp_path / path) in str(caught.value)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = build("least", tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"00002\.safetensors: missing; .*lists it for 1 tensor"
    ):
        describe(folder)


def test_the_vocabulary_in_a_few_facts() -> None:
    fields = {field.key: field for field in byte_level("qwen2")}
    fields["tokenizer.ggml.eos_token_id"] = u32("tokenizer.ggml.eos_token_id", 65)
    found = summarise(fields)
    assert found is not None
    assert (found.model, found.pre) == ("gpt2", "qwen2")
    assert found.special == {"bos": Named(0, "Ā"), "eos": Named(65, "A")}
    assert Named(65, "A") in found.ends
    assert found.types["normal"] == found.tokens


@pytest.mark.parametrize("name", ["tokens", "model", "token_type", "eos_token_id", "merges"])
def test_metadata_that_make_no_sense_are_no_vocabulary(name: str) -> None:
    fields: dict[str, Field] = {field.key: field for field in byte_level("qwen2")}
    fields[f"tokenizer.ggml.{name}"] = u32("", 7 << 20)
    assert (summarise(fields) is None) == (name in ("tokens", "model"))


def test_a_vocabulary_without_weights() -> None:
    found = describe(DATA / "vocab" / "ggml-vocab-llama-spm.gguf")
    assert found.elements == 0
    assert found.architecture == "llama"
    assert summarise({"general.name": string("general.name", "x")}) is None
