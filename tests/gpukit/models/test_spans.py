"""Several tensors of one and one of several, and experts as transformers 5 has them in memory."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import checkpoints, families, zoo_build
from support.slabs import tensors
from support.zoo import ZOO
from transformers import AutoModelForCausalLM

from gpukit import models
from gpukit.conversion.run import run_plan
from gpukit.errors import CheckpointError
from gpukit.generation.loading import load_model
from gpukit.models.registry import architecture_of_class, architectures
from gpukit.models.rules import Rule, Span
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source
from gpukit.sources.steps import Step

STEPS = [1, 5, 70, 1 << 20]
DTYPES = {"q_proj": torch.bfloat16, "k_proj": torch.float16, "v_proj": torch.float64}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The families of tests/support/families beside those of gpukit."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, *families.__path__])
    architectures.cache_clear()
    yield
    architectures.cache_clear()
    sys.modules.pop("gpukit.models.toy", None)


def by_row(name: str, row: int, rows: torch.Tensor) -> torch.Tensor:
    """Adds to each row its number among those of the tensor that `name` begins."""
    numbers = torch.arange(row, row + len(rows), dtype=torch.float32)[:, None]
    return rows.to(torch.float32) + numbers / 512


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("step", STEPS)
def test_one_tensor_becomes_several(step: int, tmp_path: Path) -> None:
    folder = checkpoints.build("biases", tmp_path)
    found = {k: v for k, v in load_file(folder / "model.safetensors").items()
             if ("mlp" not in k and "o_proj" not in k) or k.endswith("weight")}  # fmt: skip
    save_file(found, folder / "model.safetensors")
    config = folder / "config.json"
    said = {**json.loads(config.read_text()), "attention_bias": False, "mlp_bias": False}
    config.write_text(json.dumps(said))
    wanted = tensors(folder, (), 1 << 20)
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{at}.{part}.{kind}") for part in DTYPES]
            found[f"{at}.qkv.{kind}"] = torch.cat(parts)
    config.write_text(json.dumps({**said, "architectures": ["SplitForCausalLM"]}))
    save_file(found, folder / "model.safetensors")
    got = tensors(folder, (), step)
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(got[name], values), name


def apart(root: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A Phi-3 with queries, keys and values apart and of three dtypes, and its tensors. Rows have
    18 values: behind an odd number of them in 16 bits doubles are not aligned."""
    folder = zoo_build.build("phi4", root)
    path = folder / "config.json"
    small = {
        "architectures": ["JoinedForCausalLM"], "num_hidden_layers": 2, "intermediate_size": 8,
        "hidden_size": 18, "num_attention_heads": 3, "num_key_value_heads": 3,
    }  # fmt: skip
    config = {**json.loads(path.read_text()), **small}
    path.write_text(json.dumps(config))
    arch, source, found = architecture_of_class(config, ""), torch.Generator().manual_seed(1), {}
    for rule in arch.rules(arch.read(config)):
        for span in rule.spans:
            dtype = next((d for part, d in DTYPES.items() if part in span.source), torch.bfloat16)
            found[span.source] = torch.randn(span.shape, generator=source).to(dtype)
    save_file(found, folder / "model.safetensors")
    return folder, found


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("steps", [(), (by_row,)])
def test_several_tensors_of_any_dtype_become_one(
    step: int, steps: tuple[Step, ...], tmp_path: Path
) -> None:
    folder, found = apart(tmp_path)
    wanted = {}
    for layer in range(2):
        parts = [found[f"model.layers.{layer}.self_attn.{part}.weight"] for part in DTYPES]
        parts = [by_row("", 0, values) if steps else values.float() for values in parts]
        wanted[f"blk.{layer}.attn_qkv.weight"] = torch.cat(parts)
    got = tensors(folder, steps, step)
    for name, values in wanted.items():
        assert torch.equal(got[name], values), name
    with open_source(folder) as source:
        kinds = {t.name: source.stored_type(i) for i, t in enumerate(source.tensors)}
    assert {kinds[name] for name in wanted} == {"F32"}


@pytest.mark.usefixtures("toys")
def test_one_of_several_that_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    folder, found = apart(tmp_path)
    key = "model.layers.0.self_attn.k_proj.weight"
    narrow = {**found, key: found[key][:, :8].contiguous()}
    for some, words in (
        ({k: v for k, v in found.items() if k != key}, rf"1 tensor \({key}\) missing of \d+ that"),
        (narrow, rf"{key} has shape \[\d+, 8\], config.json asks for \[\d+, \d+\]"),
    ):
        save_file(some, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=words):
            open_source(folder)


def test_a_rule_whose_spans_do_not_make_its_shape_is_a_mistake_in_a_family() -> None:
    span = Span("a", (8, 4), 0, 6)
    Rule((span,), "b", (6, 4), row_group=2)
    with pytest.raises(ValueError, match="b: spans of 6 rows for 8, in groups of 1"):
        Rule((span,), "b", (8, 4))
    with pytest.raises(ValueError, match="b: spans of 6 rows for 6, in groups of 4"):
        Rule((span,), "b", (6, 4), row_group=4)


@pytest.fixture(scope="module", params=["mixtral-12", "qwen3-moe-12"])
def fused(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Experts as they are published, and as transformers 5 may save them: as in memory."""
    folder = zoo_build.build(request.param, tmp_path_factory.mktemp("apart"))
    if ZOO[request.param].pre:
        # The pre-tokenizer of the small vocabulary is one that nobody recognises.
        known = zoo_build.build("mixtral-8x7b", tmp_path_factory.mktemp("known"))
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes((known / "tokenizer.model").read_bytes())
    other = tmp_path_factory.mktemp("fused")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.save_pretrained(other, save_original_format=False)
    (other / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    names = load_file(other / "model.safetensors").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    return folder, other


@pytest.mark.parametrize("step", [1, 5, 100, 1 << 20])
def test_experts_as_transformers_5_has_them_in_memory(step: int, fused: tuple[Path, Path]) -> None:
    wanted, got = tensors(fused[0], (), 1 << 20), tensors(fused[1], (), step)
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(got[name], values), name


def test_fused_experts_speak_as_those_apart(fused: tuple[Path, Path], tmp_path: Path) -> None:
    logits = []
    for folder in fused:
        with open_source(folder) as source:
            path = run_plan(source, plan_quantize(source, "F16"), tmp_path / "x.gguf").path
        decoder = load_model(path, "cpu").decoder
        logits.append(decoder.forward([1, 5, 9, 13], decoder.cache(16)))
    assert torch.equal(*logits)


def test_half_of_the_fused_experts_is_no_model(fused: tuple[Path, Path], tmp_path: Path) -> None:
    found = load_file(fused[1] / "model.safetensors")
    del found["model.layers.0.mlp.experts.down_proj"]
    for file in ("config.json", "tokenizer.model"):
        (tmp_path / file).write_bytes((fused[1] / file).read_bytes())
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ tensors \(.*\) missing of \d+ that config"):
        open_source(tmp_path)
