"""Checkpoints in blocks through llama.cpp's converter, which repacks them: the bytes are its own.

Needs llama.cpp's source as tests/gpukit/sources/test_foreign.py.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from support.foreign import recognising
from support.foreign_blocks import BLOCKS, build_blocks
from support.golden_makers.converter import convert
from support.peer_trees import for_each_tree, needs_tree

import gpukit
from gpukit import ArgumentError, Options
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.planning.overrides import Overrides

pytestmark = [pytest.mark.peer, needs_tree]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("blocks")
    for name in BLOCKS:
        build_blocks(name, root)
    return root


@for_each_tree
def place(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a checkout, `tree`, and with the converter's own files."""
    root = tmp_path_factory.mktemp("made")
    tree = recognising(request.param, root / "tree")
    convert(tree, [(models / name, root / f"{name}.gguf", "auto") for name in BLOCKS])
    return root


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_carried_bit_for_bit(name: str, models: Path, place: Path) -> None:
    theirs, ours, tree = place / f"{name}.gguf", place / f"{name}-ours.gguf", place / "tree"
    gpukit.convert(models / name, ours, converter=tree)
    assert ours.read_bytes() == theirs.read_bytes()
    with GGUFFile(ours) as file:
        kinds = [tensor.type for tensor in file.tensors.values()]
    assert kinds.count(BLOCKS[name][3]) >= 6


@pytest.mark.filterwarnings("default")
def test_quantising_what_is_in_blocks(models: Path, place: Path) -> None:
    model, start, tree = models / "mxfp4", place / "mxfp4.gguf", place / "tree"
    options = Options(overrides=Overrides())
    with pytest.raises(ArgumentError, match="allow-requantize"):
        gpukit.plan(model, "Q4_K_M", options=options, converter=tree)
    options, kinds = replace(options, allow_requantize=True), ["Q4_K_M", "MXFP4_MOE"]
    outs = {who: place / f"{who}-{{type}}.gguf" for who in ("ours", "theirs")}
    gpukit.quantize_many(model, outs["ours"], kinds, options=options, converter=tree)
    gpukit.quantize_many(start, outs["theirs"], kinds, options=options)
    for kind in kinds:
        ours, theirs = (Path(str(out).replace("{type}", kind)) for out in outs.values())
        assert ours.read_bytes() == theirs.read_bytes(), kind
    gpukit.quantize(models / "nvfp4", outs["ours"], "Q4_K_M", options=options, converter=tree)
    gpukit.quantize(place / "nvfp4.gguf", outs["theirs"], "Q4_K_M", options=options)
    assert outs["ours"].read_bytes() == outs["theirs"].read_bytes()
    with GGUFFile(outs["ours"]) as file:
        assert not [name for name in file.tensors if name.endswith("scale")]
