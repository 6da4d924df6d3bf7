"""Every architecture: import against llama.cpp's converter and llama-quantize, logits against
transformers, and llama.cpp's own logits of the files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import DATA
from support.golden_makers.converter import described
from support.golden_makers.zoo import collect
from support.llama_cpp_server import probabilities
from support.peer_trees import TREE, needs_tree
from support.zoo import ZOO
from support.zoo_build import build

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.file_types import CONVERTED
from gpukit.generation.loading import load_model
from gpukit.models.decoder import Decoder
from gpukit.models.importer import plan_tensors
from gpukit.models.registry import architecture_of_class, architectures
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GOLDEN: dict[str, dict[str, Any]] = json.loads((DATA / "golden" / "zoo.json").read_text())
MTP: dict[str, dict[str, Any]] = json.loads((DATA / "golden" / "mtp.json").read_text())
# float32 sums of up to 512 products in another order: some 2^-24 * sqrt(512) of the largest term
# each, through a few layers. Measured: below 3e-5 (Phi-4-mini), most below 1e-5.
TOLERANCE = 1e-4
# Past every window and every length that a RoPE scaling starts from.
POSITIONS = 300


def test_every_class_is_in_the_zoo() -> None:
    known = {name for arch in architectures() for name in arch.classes}
    shown = {animal.config["architectures"][0] for animal in ZOO.values()}
    assert known - {"LlamaForCausalLM", "LLaMAForCausalLM"} == shown
    assert GOLDEN.keys() == ZOO.keys()


def test_architectures_of_one_name_are_read_back_alike() -> None:
    first = {arch.name: arch for arch in reversed(architectures())}
    for arch in architectures():
        assert arch.style == first[arch.name].style
        assert arch.restoring is first[arch.name].restoring
        assert arch.building is first[arch.name].building


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the checkpoints are built in, once each."""
    return tmp_path_factory.mktemp("zoo")


def _built(name: str, folders: Path) -> Path:
    return folders / name if (folders / name).exists() else build(name, folders)


def _converted(name: str, folders: Path, kind: str) -> Path:
    out = folders / f"{name}-{kind}.gguf"
    if not out.exists():
        with open_source(_built(name, folders), ZOO[name].pre) as source:
            run_plan(source, plan_quantize(source, None if kind == "auto" else kind), out)
    return out


def _quantized(name: str, folders: Path, kind: str) -> Path:
    """A folder as `kind` by llama-quantize's rules, or its GGUF, where a folder means the
    converter's."""
    origin = _built(name, folders)
    if kind in CONVERTED:
        origin = _converted(name, folders, ZOO[name].types[0])
    out = folders / f"{name}-quantized-{kind}.gguf"
    with open_source(origin, None if origin.is_file() else ZOO[name].pre) as source:
        run_plan(source, plan_quantize(source, kind, Options(allow_requantize=True)), out)
    return out


def _floats(name: str, folders: Path) -> Path:
    """The model in float32 as a whole."""
    path = _converted(name, folders, "f32")
    if ZOO[name].dtype != "MXFP4":
        return path
    # For products with blocks llama.cpp rounds what they are multiplied with.
    out = folders / f"{name}-floats.gguf"
    with open_source(path) as source:
        run_plan(source, plan_quantize(source, "F32"), out)
    return out


def _without_extra(name: str, fields: list[list[Any]]) -> list[list[Any]]:
    extra = [field[0] for field in fields if field[0] in ZOO[name].extra]
    assert extra == list(ZOO[name].extra)
    return [field for field in fields if field[0] not in extra]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ZOO)
def test_import_equals_that_of_the_converter(name: str, folders: Path) -> None:
    found = described({kind: _converted(name, folders, kind) for kind in ZOO[name].types})
    assert _without_extra(name, found["fields"]) == GOLDEN[name]["fields"]
    assert found["tensors"] == GOLDEN[name]["tensors"]


@pytest.mark.parametrize("name", MTP)
def test_layers_that_guess_are_left_out_or_alone(name: str, folders: Path, tmp_path: Path) -> None:
    for option, golden in MTP[name].items():
        out, options = tmp_path / f"x{option}.gguf", Options(mtp=option == "--mtp")
        with open_source(_built(name, folders), ZOO[name].pre, mtp=options.mtp) as source:
            run_plan(source, plan_quantize(source, None, options), out)
        found = described({"auto": out})
        assert found == golden, option
        with pytest.raises(ArgumentError, match="a GGUF has its layers; --mtp and --no-mtp are"):
            open_source(out, mtp=True)
    with pytest.raises(CheckpointError, match="no layers that guess further tokens; leave --mtp"):
        open_source(_built("qwen3.5-vision", folders), "qwen35", mtp=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].dtype != "F32"])
def test_quantising_equals_llama_quantize(name: str, folders: Path) -> None:
    found = described({kind: _quantized(name, folders, kind) for kind in ZOO[name].quantized})
    assert _without_extra(name, found["fields"]) == GOLDEN[name]["quantized"]["fields"]
    assert found["tensors"] == GOLDEN[name]["quantized"]["tensors"]


@needs_tree
@pytest.mark.peer
def test_the_golden_entries_are_those_of_the_peer(tmp_path: Path) -> None:
    assert TREE is not None
    for name, found in collect(tmp_path, TREE, ZOO).items():
        assert found["fields"] == GOLDEN[name]["fields"], name
        assert found["tensors"] == GOLDEN[name]["tensors"], name


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference at any position over the largest logit there."""
    assert found.shape == wanted.shape
    return float(((found - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


def _in_pieces(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits of every position through a cache that grows unevenly."""
    cache, at, parts = decoder.cache(len(tokens)), 0, []
    for count in (1, 1, 7, 200, 1, len(tokens) - 210):
        parts.append(decoder.forward(tokens[at : at + count], cache, every=True))
        at += count
    return torch.cat(parts)


def _peer(name: str, folders: Path) -> Any:
    """The checkpoint in transformers, float32."""
    transformers = pytest.importorskip("transformers")
    peer = getattr(transformers, ZOO[name].config["architectures"][0]).from_pretrained(
        _built(name, folders), dtype=torch.float32, attn_implementation="eager"
    )
    if ZOO[name].dtype == "F16" and ZOO[name].shifted:
        # The converter computes in half precision, and what a file holds is what runs.
        for key, weight in peer.named_parameters():
            if key.endswith("norm.weight") and "linear_attn" not in key:
                weight.data = (weight.data.half() + 1).float() - 1
            elif key.endswith("A_log"):
                weight.data = weight.data.half().exp().float().log()
    return peer


def _tensors(folder: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Names and dimensions of the GGUF that a checkpoint becomes."""
    with Checkpoint(folder) as checkpoint:
        return {(tensor.name, tensor.ne) for tensor in plan_tensors(checkpoint)[1]}


def _check_saved_again(name: str, folders: Path, peer: Any) -> None:
    """What transformers writes of a model of it, config.json and names, is read as the same one,
    but for what takes no part in a pass, which transformers leaves out."""
    saved = folders / f"{name}-saved"
    peer.save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    arch = architecture_of_class(config, name)
    model = arch.read(config)
    assert model == arch.read(ZOO[name].config)
    # Of blocks it makes floats, and saves those under the names of blocks, without scales.
    if ZOO[name].dtype != "MXFP4":
        found, wanted = _tensors(saved), _tensors(_built(name, folders))
        assert found == {tensor for tensor in wanted if not model.unused.has(tensor[0])}
    shutil.rmtree(saved)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].in_transformers])
def test_logits_are_those_of_transformers(name: str, folders: Path) -> None:
    top = min(ZOO[name].text["vocab_size"], 2048)
    ids = torch.randint(top, (POSITIONS,), generator=torch.Generator().manual_seed(1))
    peer = _peer(name, folders)
    with torch.inference_mode():
        wanted = peer(ids[None], use_cache=False).logits[0]
    _check_saved_again(name, folders, peer)
    decoder = load_model(_converted(name, folders, "f32"), "cpu").decoder
    tokens = ids.tolist()
    whole = decoder.forward(tokens, decoder.cache(POSITIONS), every=True)
    assert _error(whole, wanted) < TOLERANCE
    assert _error(_in_pieces(decoder, tokens), wanted) < TOLERANCE


@pytest.mark.parametrize(("name", "most"), [("phi3-128k", 64), ("phi4-multimodal", 256)])
def test_short_contexts_have_the_short_divisors(name: str, most: int, folders: Path) -> None:
    tokens = list(range(300, 300 + most))
    with torch.inference_mode():
        wanted = _peer(name, folders)(torch.tensor([tokens]), use_cache=False).logits[0]
    decoder = load_model(_converted(name, folders, "f32"), "cpu").decoder
    assert _error(decoder.forward(tokens, decoder.cache(most), every=True), wanted) < TOLERANCE
    longer = decoder.forward(tokens, decoder.cache(most + 1), every=True)
    assert _error(longer, wanted) > 10 * TOLERANCE


@pytest.mark.sampled(8)
@pytest.mark.peer
@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].loads])
def test_llama_cpp_gives_the_same_probabilities(name: str, folders: Path) -> None:
    path = _floats(name, folders)
    tokens = list(range(300, 300 + ZOO[name].prompt))
    ids, wanted = probabilities(path, tokens)
    decoder = load_model(path, "cpu").decoder
    found = decoder.forward(tokens, decoder.cache(256)).log_softmax(-1)[ids]
    # The same sums in another order (measured: below 2e-5), and its GELU comes from a table of
    # float16: 2^-12 of each value (measured: below 2e-3).
    within = 5e-3 if "gemma" in ZOO[name].family else 1e-4
    difference = (found - wanted).abs().max()
    assert (difference < within) == ZOO[name].alike
