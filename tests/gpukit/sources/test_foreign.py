"""Classes that gpukit has no family for, by llama.cpp's own converter: bytes as converter and
llama-quantize give them one behind the other.

Needs llama.cpp's source: GPUKIT_LLAMA_CPP, a folder with convert_hf_to_gguf.py. What gpukit makes
of a GGUF is llama-quantize's (tests/gpukit/conversion/test_files.py), so that stands in for it.
"""

import os
from pathlib import Path

import pytest
from support.foreign import FOREIGN, build, recognising
from support.golden_makers.converter import convert

import gpukit
from gpukit import Options
from gpukit.planning.overrides import Overrides

TREE = os.environ.get("GPUKIT_LLAMA_CPP")
TYPES = ["Q4_K_M", "Q8_0"]

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(TREE is None, reason="GPUKIT_LLAMA_CPP names no llama.cpp source"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    assert TREE is not None
    root = tmp_path_factory.mktemp("foreign")
    tree = recognising(Path(TREE), root / "tree")
    folders = [build(name, root) for name in FOREIGN]
    convert(
        tree, [(f, f.with_suffix(f".{kind}"), kind) for f in folders for kind in ("bf16", "q8_0")]
    )
    return root


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", FOREIGN)
def test_bytes_are_those_of_converter_and_quantizer(name: str, place: Path) -> None:
    options, tree = Options(overrides=Overrides()), place / "tree"
    out = {who: place / f"{name}-{who}-{{type}}.gguf" for who in ("ours", "theirs")}
    gpukit.quantize_many(place / name, out["ours"], TYPES, options=options, converter=tree)
    gpukit.quantize_many(place / f"{name}.bf16", out["theirs"], TYPES, options=options)
    for kind in TYPES:
        ours, theirs = (Path(str(path).replace("{type}", kind)) for path in out.values())
        assert ours.read_bytes() == theirs.read_bytes(), kind
    gpukit.convert(place / name, place / "q8_0.gguf", "Q8_0", converter=tree)
    assert (place / "q8_0.gguf").read_bytes() == (place / f"{name}.q8_0").read_bytes()
