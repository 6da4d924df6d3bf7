"""NF4 as bitsandbytes has it, and which weights QLoRA quantises."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.adapters import FAMILIES, model, quiet
from support.checkpoints import DATA
from support.golden_makers.nf4 import CASES
from support.zoo_build import build
from torch import Tensor, nn
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from gpukit.conversion.folder import write_folder
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.models.nf4 import BLOCK, decoded, dynamic_levels, largest, levels, twice_quantised
from gpukit.sources.nf4 import NF4

GOLDEN = np.load(DATA / "golden" / "nf4.npz")
NAME = "model.layers.0.mlp.up_proj.weight"


def golden(case: str, what: str) -> Tensor:
    found = torch.from_numpy(GOLDEN[f"{case}/{what}"])
    return found.view(torch.bfloat16) if found.dtype is torch.int16 else found


def folder_of(path: Path, values: Tensor, name: str = NAME) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({name: values.contiguous()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_that_of_bitsandbytes(case: str) -> None:
    values, wanted = golden(case, "values"), golden(case, "decoded")
    found = largest(values)
    assert decoded(values, 0, found, found).to(values.dtype).equal(wanted)
    assert not wanted.equal(values)
    # Values of blocks that are all 0 or all alike stay.
    assert wanted[0].eq(0).all()


@pytest.mark.parametrize("case", CASES)
def test_scales_that_are_quantised_themselves(case: str) -> None:
    """Nearest, as its CUDA kernels do it. Its CPU kernel takes another level now and then, which is
    not nearer; and the mean of all is one of float32 there."""
    plain, wanted = largest(golden(case, "values")), golden(case, "twice")
    found = twice_quantised(plain)
    other = (found - wanted).abs() > 2**-22 * plain.max()
    assert other.float().mean() < 0.02
    assert ((found - plain).abs() <= (wanted - plain).abs() + 2**-22 * plain.max()).all()
    assert not found.equal(plain)


def test_levels() -> None:
    assert len(levels()) == 16
    assert len(dynamic_levels()) == len(set(dynamic_levels().tolist())) == 256
    for known in (levels(), dynamic_levels()):
        assert known.sort().values.equal(known)
        # Each level is what it is nearest to.
        one = torch.ones(1)
        again = decoded(levels(), 0, one, one)
        assert again.equal(levels())


def test_a_level_lies_between_its_bounds() -> None:
    """Half way to the next one a level ends, and the half itself belongs to the lower."""
    low, high = levels()[:-1], levels()[1:]
    half, one = (low + high) / 2, torch.ones(1)
    assert decoded(half, 0, one, one).equal(low)
    above = torch.nextafter(half, torch.tensor(2.0))
    assert decoded(above, 0, one, one).equal(high)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_step_has_rows_anywhere(case: str, double: bool, tmp_path: Path) -> None:
    """Slabs of any rows give what the whole gives, blocks across rows, too."""
    values = golden(case, "values")
    folder = folder_of(tmp_path / "base", values)
    plain = largest(values)
    stored = twice_quantised(plain) if double else plain
    wanted = decoded(values, 0, plain, stored).to(values.dtype).float()
    with Checkpoint(folder) as checkpoint:
        step = NF4(checkpoint, double=double)
        for size in (1, 7, len(values)):
            parts = [step(NAME, at, values[at : at + size]) for at in range(0, len(values), size)]
            assert torch.cat(parts).equal(wanted)
            assert parts[0].dtype is torch.float32
        other = torch.ones(2, 2)
        assert step("model.norm.weight", 0, other) is other


def test_the_type_of_the_base_when_it_was_trained_on(tmp_path: Path) -> None:
    values = golden("f32", "values")
    with Checkpoint(folder_of(tmp_path / "base", values)) as checkpoint:
        found = NF4(checkpoint, double=False, dtype="BF16")(NAME, 0, values)
    rounded = values.to(torch.bfloat16)
    wanted = decoded(rounded, 0, largest(rounded), largest(rounded)).to(torch.bfloat16).float()
    assert found.equal(wanted)
    assert not found.equal(decoded(values, 0, largest(values), largest(values)))


def test_large_tensors_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = golden("bf16", "values")
    monkeypatch.setattr("gpukit.sources.nf4._READ", 3 * BLOCK)
    with Checkpoint(folder_of(tmp_path / "base", values)) as checkpoint:
        found = NF4(checkpoint, double=True)(NAME, 0, values)
    plain = largest(values)
    assert found.equal(decoded(values, 0, plain, twice_quantised(plain)).bfloat16().float())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_quantises(family: str, tmp_path: Path) -> None:
    """The linear layers of its own model but those that it leaves out by itself."""
    found = model(family)
    with quiet():
        found.save_pretrained(tmp_path / "base")
    kept = get_keys_to_not_convert(found)
    wanted = {
        f"{name}.weight"
        for name, module in found.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }
    with Checkpoint(tmp_path / "base") as checkpoint:
        names = NF4(checkpoint, double=True, experts=False).names
        skip = ["q_proj", "lm_head", r"model.layers.\d+.mlp", "layers.1.self_attn.o"]
        own = NF4(checkpoint, double=True, experts=False, skip=skip).names
        every = NF4(checkpoint, double=True, skip=[]).names
    assert names == wanted
    skipped = {
        f"{name}.weight"
        for name, module in found.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, skip)
    }
    assert own == skipped
    assert every >= names
    assert ("lm_head.weight" in every) == (
        family not in ("gemma", "gemma2", "gemma3", "llama-tied")
    )
    experts = [name for name in every if re.search(r"experts\.\d|\.gate\.", name)]
    assert len(experts) == (2 * (3 * 3 + 1) if family == "mixtral" else 0)


def test_weights_in_eight_bits_are_refused(tmp_path: Path) -> None:
    with (
        Checkpoint(build("mixtral-fp8", tmp_path)) as checkpoint,
        pytest.raises(CheckpointError, match=r"is F8_E4M3; QLoRA's NF4 is made from BF16, F16"),
    ):
        NF4(checkpoint, double=True)


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    with Checkpoint(folder_of(tmp_path / "base", torch.ones(2, 64))) as checkpoint:
        with pytest.raises(ArgumentError, match="a base in F8_E4M3; NF4 is made from"):
            NF4(checkpoint, double=True, dtype="F8_E4M3")
        with pytest.raises(ArgumentError, match=r"'\(' is no pattern of modules"):
            NF4(checkpoint, double=True, skip=["("])


def test_in_a_pass_to_a_folder(tmp_path: Path) -> None:
    with quiet():
        base = transformers.AutoModelForCausalLM.from_config(model("llama").config)
        base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    with Checkpoint(tmp_path / "base") as checkpoint:
        step = NF4(checkpoint, double=True)
        write_folder(checkpoint, tmp_path / "out", [step], device="cpu", budget=1 << 16)
    stored = load_file(tmp_path / "base" / "model.safetensors")
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        wanted = stored[name]
        if name in step.names:
            plain = largest(wanted)
            wanted = decoded(wanted, 0, plain, twice_quantised(plain)).to(torch.bfloat16)
            assert not wanted.equal(stored[name])
        assert values.equal(wanted), name
