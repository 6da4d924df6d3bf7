"""Weights in small packed numbers: the files that llama.cpp's converter makes of them, and what
they decode to by the formats' definitions."""

from pathlib import Path

import pytest
from support.golden_makers.converter import convert
from support.packed import FORMS, build_packed
from support.peer_trees import for_each_tree, needs_tree
from support.zoo import ZOO

import gpukit

MODELS = (
    *(("mistral-small", form) for form in FORMS),
    *(("qwen3-moe", form) for form in ("modelopt", "nvfp4-packed", "pack-4", "gptq-4")),
    ("glm4-moe", "modelopt"),
)


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


KINDS = ("auto", "f32")


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
