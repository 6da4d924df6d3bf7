"""Whole files against llama.cpp: the converter's, and those of converter and llama-quantize."""

import hashlib
import json
from pathlib import Path

import pytest
from checkpoints import DATA, VARIANTS, build

from gpukit.formats.gguf_reader import GGUFFile
from gpukit.recipes.quantize import plan_quantize, run_plan
from gpukit.recipes.source import open_source

GOLDEN: dict[str, dict[str, str]] = json.loads((DATA / "golden" / "files.json").read_text())


def test_every_variant_has_golden_digests() -> None:
    assert GOLDEN.keys() == VARIANTS.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_files_equal_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    if not VARIANTS[name].tokenizer.is_dir():
        pytest.skip(f"{VARIANTS[name].tokenizer.name} is not beside the repository")
    folder = build(name, tmp_path)
    different = []
    for kind, wanted in GOLDEN[name].items():
        out = tmp_path / f"{kind}.gguf"
        with open_source(folder) as source:
            result = run_plan(source, plan_quantize(source, kind), out, digest=True)
        assert result.digest == hashlib.sha256(out.read_bytes()).hexdigest()
        if result.digest != wanted:
            different.append(kind)
    assert not different


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
