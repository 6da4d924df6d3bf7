"""What enters the linear maps of a decoder, by the names that they have in a GGUF."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from support import checkpoints, zoo_build

from gpukit.conversion.run import run_plan
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.generation.loading import load_model
from gpukit.models.weights import Site
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

IDS = list(range(3, 14))
Heard = list[tuple[Site, torch.Tensor]]


def observed(folder: Path) -> tuple[Path, Heard]:
    """The checkpoint as a float32 GGUF, and what its decoder tells of one forward pass."""
    path, heard = folder / "f32.gguf", []
    with open_source(folder) as source:
        run_plan(source, plan_quantize(source, "F32"), path)
    decoder = load_model(
        path, "cpu", observe=lambda site, x: heard.append((site, x.clone()))
    ).decoder
    logits = decoder.forward(IDS, decoder.cache(32), every=True)
    plain = load_model(path, "cpu").decoder
    assert torch.equal(logits, plain.forward(IDS, plain.cache(32), every=True))
    return path, heard


def matrices(path: Path) -> dict[str, tuple[int, ...]]:
    """Dimensions of every tensor with more than one, but for the embedding."""
    with GGUFFile(path) as file:
        found = {info.name: info.ne for info in file.tensors.values() if len(info.ne) > 1}
    tied = "output.weight" not in found
    return {name: ne for name, ne in found.items() if tied or name != "token_embd.weight"}


def dense(name: str, root: Path) -> Path:
    return (
        checkpoints.build(name, root)
        if name in checkpoints.VARIANTS
        else zoo_build.build(name, root)
    )


@pytest.mark.parametrize("name", ["plain", "tied", "biases", "qwen3", "gemma2", "phi3-4k"])
def test_every_input_is_heard_once_by_the_name_of_its_tensor(name: str, tmp_path: Path) -> None:
    path, heard = observed(dense(name, tmp_path))
    wanted = matrices(path)
    assert Counter(site.name for site, _ in heard) == dict.fromkeys(wanted, 1)
    for site, x in heard:
        width, rows = wanted[site.name]
        assert (site.first, site.rows, *x.shape) == (0, rows, len(IDS), width)
    inputs = {site.name: x for site, x in heard}
    assert all(len(x.unique()) > len(IDS) for x in inputs.values())
    if name != "phi3-4k":
        for layer in (0, 1):
            at = f"blk.{layer}."
            q, k, v = (inputs[f"{at}attn_{part}.weight"] for part in "qkv")
            assert torch.equal(q, k)
            assert torch.equal(q, v)
            assert torch.equal(inputs[at + "ffn_gate.weight"], inputs[at + "ffn_up.weight"])


def test_experts_hear_of_the_rows_that_are_sent_to_them(tmp_path: Path) -> None:
    path, heard = observed(zoo_build.build("mixtral-12", tmp_path))
    count, used, wanted = 12, 3, matrices(path)
    inputs: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for site, x in heard:
        ne = wanted[site.name]
        rows = ne[1]
        assert site.rows == rows
        number, rest = divmod(site.first, rows)
        assert rest == 0
        assert x.shape[1] == ne[0]
        assert number not in inputs[site.name]
        inputs[site.name][number] = x
    assert inputs.keys() == wanted.keys()
    routers = [name for name in wanted if "ffn_gate_inp" in name]
    for name in routers:
        (x,) = inputs[name].values()
        gate, up, down = (
            inputs[name.replace("gate_inp", f"{part}_exps")] for part in ("gate", "up", "down")
        )
        assert 1 < len(gate) <= count
        assert sum(len(part) for part in gate.values()) == used * len(IDS)
        for number, part in gate.items():
            assert torch.equal(part, up[number])
            assert len(part) == len(down[number])
            # Each is a row of what the router saw.
            assert (part[:, None] == x[None]).all(-1).any(-1).all()
