"""Every form of checkpoint against llama.cpp's converter: metadata, names, shapes, types, bytes.

Whole files of larger checkpoints, and the file types of llama-quantize: tests/gpukit/recipes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import DATA, VARIANTS, build as build_variant
from support.forms import FORMS, build
from support.golden_makers.converter import collect, convert, described
from support.peer_trees import TREE, needs_tree

from gpukit.conversion.run import run_plan
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GOLDEN: dict[str, dict[str, Any]] = json.loads((DATA / "golden" / "converter.json").read_text())


def test_every_form_has_its_golden_entry() -> None:
    assert GOLDEN.keys() == FORMS.keys()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FORMS)
def test_import_equals_that_of_the_converter(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path)
    files = {}
    with open_source(folder) as source:
        for kind in FORMS[name].types:
            files[kind] = tmp_path / f"{kind}.gguf"
            plan = plan_quantize(source, None if kind == "auto" else kind)
            run_plan(source, plan, files[kind])
    found, wanted = described(files), GOLDEN[name]
    assert found["fields"] == wanted["fields"]
    assert found["tensors"] == wanted["tensors"]


@needs_tree
@pytest.mark.peer
def test_the_golden_entries_are_those_of_the_peer(tmp_path: Path) -> None:
    assert TREE is not None
    assert collect(tmp_path, TREE) == GOLDEN


@needs_tree
@pytest.mark.peer
@pytest.mark.slow
def test_the_golden_files_are_those_of_the_peer(tmp_path: Path) -> None:
    assert TREE is not None
    golden = json.loads((DATA / "golden" / "files.json").read_text())
    folders = [build_variant(n, tmp_path) for n, v in VARIANTS.items() if v.tokenizer.is_dir()]
    jobs = [
        (folder, tmp_path / f"{folder.name}-{kind}.gguf", kind)
        for folder in folders
        for kind in ("f32", "f16", "bf16", "q8_0")
    ]
    convert(TREE, jobs)
    for folder, out, kind in jobs:
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        assert digest == golden[folder.name][kind.upper()], out.name
