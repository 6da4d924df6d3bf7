"""Whole files against llama.cpp: the converter's, and those of converter and llama-quantize."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import DATA, VARIANTS, build

from gpukit.conversion.run import run_plan
from gpukit.events import Event, Warned
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GOLDEN: dict[str, dict[str, str]] = json.loads((DATA / "golden" / "files.json").read_text())


def test_every_variant_has_golden_digests() -> None:
    assert GOLDEN.keys() == VARIANTS.keys()


# 128,256 tokens, in a second a file; as every type the other variants are compared.
LONG = {"llama3-tokenizer": ("F16", "Q8_0", "Q4_K_M")}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.thorough] if n in LONG else []) for n in VARIANTS],
)
def test_files_equal_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    if not VARIANTS[name].tokenizer.is_dir():
        pytest.skip(f"{VARIANTS[name].tokenizer.name} is not beside the repository")
    folder = build(name, tmp_path)
    different = []
    with open_source(folder) as source:
        for kind in LONG.get(name, GOLDEN[name]):
            out = tmp_path / f"{kind}.gguf"
            result = run_plan(source, plan_quantize(source, kind), out, digest=True)
            assert result.digest == hashlib.sha256(out.read_bytes()).hexdigest()
            if result.digest != GOLDEN[name][kind]:
                different.append(kind)
    assert not different


@pytest.fixture(scope="module")
def digest_of_plain(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    return digest(build("plain", tmp_path_factory.mktemp("plain")))


def digest(folder: Path) -> str | None:
    with open_source(folder) as source:
        plan = plan_quantize(source, "Q8_0")
        return run_plan(source, plan, folder.parent / "out.gguf", digest=True).digest


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors", "consolidated.safetensors", "weights.safetensors",
        "pytorch_model.bin", "consolidated.00.pth", "weights.pth",
    ],
)  # fmt: skip
def test_every_name_of_the_weights_gives_the_same_file(
    name: str, digest_of_plain: str, tmp_path: Path
) -> None:
    folder = build("plain", tmp_path)
    path = folder / "model.safetensors"
    if name.endswith(".safetensors"):
        path.rename(folder / name)
    else:
        # Files of PyTorch are read in their own order; safetensors by name.
        torch.save(dict(sorted(load_file(path).items())), folder / name)
        path.unlink()
    assert digest(folder) == digest_of_plain


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    path = folder / "model.safetensors"
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    save_file(load_file(path) | more, path)
    events: list[Event] = []
    with open_source(folder) as source:
        run_plan(source, plan_quantize(source, "F16"), tmp_path / "a.gguf", report=events.append)
    (warning,) = (event.text for event in events if isinstance(event, Warned))
    assert "1 tensor (model.layers.0.self_attn.rotary_emb.inv_freq) left out:" in warning


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "F16"])
def test_a_gguf_quantises_to_the_file_of_llama_quantize(kind: str, tmp_path: Path) -> None:
    folder = build("plain", tmp_path)
    middle, out = tmp_path / "middle.gguf", tmp_path / "out.gguf"
    with open_source(folder) as source:
        run_plan(source, plan_quantize(source, "BF16"), middle)
    with open_source(middle) as source:
        run_plan(source, plan_quantize(source, kind), out)
    with open_source(folder) as source:
        run_plan(source, plan_quantize(source, kind), tmp_path / "direct.gguf")
    with GGUFFile(out) as a, GGUFFile(tmp_path / "direct.gguf") as b:
        assert set(a.tensors) == set(b.tensors)
        for name, info in a.tensors.items():
            assert (a.read(info) == b.read(b.tensors[name])).all(), name
