"""GGUF models of several shapes, quantised to every file type, against llama-quantize's files."""

import json
from pathlib import Path

import gguf_models
import pytest
from checkpoints import DATA

from gpukit.recipes.mixes import FILE_TYPES
from gpukit.recipes.quantize import plan_quantize, run_plan
from gpukit.recipes.source import open_source

GOLDEN: dict[str, dict[str, list[str | None]]] = json.loads(
    (DATA / "golden" / "quantized.json").read_text()
)


def test_every_model_and_type_has_digests() -> None:
    assert GOLDEN.keys() == gguf_models.SHAPES.keys()
    assert all(kinds.keys() == FILE_TYPES.keys() for kinds in GOLDEN.values())


@pytest.mark.parametrize("name", gguf_models.SHAPES)
def test_files_equal_those_of_llama_quantize(name: str, tmp_path: Path) -> None:
    model = gguf_models.build(name, tmp_path)
    different = []
    for kind, (wanted, _) in GOLDEN[name].items():
        if wanted is None:
            continue
        with open_source(model) as source:
            plan = plan_quantize(source, kind)
            if run_plan(source, plan, tmp_path / "out.gguf", digest=True).digest != wanted:
                different.append(kind)
    assert not different
