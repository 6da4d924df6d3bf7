"""Classes by llama.cpp's own converter: the bytes are those of converter and llama-quantize one
behind the other, for each llama.cpp that GPUKIT_LLAMA_CPP names.

What gpukit makes of a GGUF is llama-quantize's (tests/gpukit/conversion/test_files.py), so that
stands in for it; with GPUKIT_PEER_PYTHON, a Python that has llama-cpp-python, llama-quantize itself
is asked, too.
"""

import os
import subprocess
from pathlib import Path

import pytest
from support.foreign import FOREIGN, build, recognising
from support.golden_makers.converter import convert
from support.golden_makers.files import QUANTIZE
from support.peer_trees import for_each_tree, needs_tree

import gpukit
from gpukit import Options
from gpukit.formats.file_types import FILE_TYPES
from gpukit.planning.overrides import Overrides

TYPES = ["Q4_K_M", "Q8_0"]
PEER = os.environ.get("GPUKIT_PEER_PYTHON")
# The classes that the converter's own Q8_0 is compared for, too: rows that are joined, permuted,
# computed.
OWN = ("Starcoder2", "Phi", "Olmoe", "DeepseekV3", "Mamba", "GraniteMoeHybrid", "Bert")

pytestmark = [pytest.mark.peer, needs_tree]


def _asked(request: pytest.FixtureRequest) -> list[str]:
    """The classes that this run is for."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    here = [item.callspec.params["name"] for item in items if item.module is request.module]
    return [name for name in FOREIGN if name in here]


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("foreign")
    for name in _asked(request):
        build(name, root)
    return root


@for_each_tree
def place(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a checkout, `tree`, and with what its converter makes of the checkpoints."""
    root = tmp_path_factory.mktemp("made")
    tree = recognising(request.param, root / "tree")
    names = _asked(request)
    jobs = [(models / name, root / f"{name}.bf16", "bf16") for name in names]
    jobs += [(models / name, root / f"{name}.q8_0", "q8_0") for name in names if name in OWN]
    convert(tree, jobs)
    return root


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", FOREIGN)
def test_bytes_are_those_of_converter_and_quantizer(name: str, models: Path, place: Path) -> None:
    options, tree = Options(overrides=Overrides()), place / "tree"
    start = place / f"{name}.bf16"
    out = {who: place / f"{name}-{who}-{{type}}.gguf" for who in ("ours", "theirs")}
    gpukit.quantize_many(models / name, out["ours"], TYPES, options=options, converter=tree)
    gpukit.quantize_many(start, out["theirs"], TYPES, options=options)
    for kind in TYPES:
        ours, theirs = (Path(str(path).replace("{type}", kind)) for path in out.values())
        assert ours.read_bytes() == theirs.read_bytes(), kind
        if PEER is not None:
            assert ours.read_bytes() == _quantized(start, kind).read_bytes(), kind
    if name in OWN:
        gpukit.convert(models / name, place / "q8_0.gguf", "Q8_0", converter=tree)
        assert (place / "q8_0.gguf").read_bytes() == (place / f"{name}.q8_0").read_bytes()


def _quantized(start: Path, kind: str) -> Path:
    """What llama-quantize makes of a GGUF."""
    out = start.with_suffix(".peer.gguf")
    command = [str(PEER), "-c", QUANTIZE, start, out, str(FILE_TYPES[kind].number)]
    subprocess.run(command, check=True, capture_output=True)
    return out
