"""Deltas moved to a GGUF's tensors do there what they do before the import."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from support import checkpoints, zoo_build
from support.adapters import ATTENTION, FUSED, LINEAR, base_of, fill, quiet
from support.slabs import tensors
from torch import Tensor

from gpukit import quantize
from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import merged, merged_rows
from gpukit.adapters.gguf import gguf_base
from gpukit.adapters.moved import moved
from gpukit.adapters.opening import open_adapter
from gpukit.errors import AdapterError
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.gguf_split import GGUFModel
from gpukit.models.importer import plan_import

ALL = 1 << 30
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("biases", {"target_modules": LINEAR, "lora_bias": True, "modules_to_save": ["norm"]}),
    "llama-dora": ("narrow-heads", {"target_modules": [*LINEAR, "lm_head"], "use_dora": True}),
    "phi": ("phi4", {"target_modules": FUSED, "trainable_token_indices": [3, 1]}),
    "gemma": ("gemma", {"target_modules": LINEAR, "modules_to_save": ["input_layernorm", "norm"]}),
    "mixtral": (
        "mixtral-12",
        {
            "target_modules": ATTENTION,
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


def _make(case: str, root: Path) -> tuple[Path, Path]:
    """A checkpoint with a vocabulary, and an adapter of PEFT for it."""
    name, config = CASES[case]
    maker = checkpoints if name in checkpoints.VARIANTS else zoo_build
    folder = maker.build(name, root)
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wrapped = peft.get_peft_model(plain, peft.LoraConfig(r=2, lora_alpha=3, **config))
        fill(wrapped)
        wrapped.save_pretrained(root / "adapter")
    return folder, root / "adapter"


def _imported(folder: Path, adapter: Adapter) -> dict[str, Tensor]:
    """The GGUF's tensors of the merged checkpoint."""

    def step(name: str, row: int, rows: Tensor) -> Tensor:
        records = adapter.deltas.get(name)
        return rows if records is None else merged_rows(rows.float(), row, records)

    return tensors(folder, (step,), ALL)


def _check(plain: Mapping[str, Tensor], wanted: Mapping[str, Tensor], deltas: Any) -> None:
    """`plain` with the moved `deltas` is `wanted`: the same sums, moved before or behind them."""
    assert deltas.keys() == {name for name in plain if not plain[name].equal(wanted[name])}
    for name, records in deltas.items():
        weight = plain[name]
        weight = weight.view(-1) if "bias" in name or "norm" in name else weight
        assert merged(weight, records).view(wanted[name].shape).equal(wanted[name]), name


@pytest.mark.parametrize("case", CASES)
def test_before_and_behind_an_import(case: str, tmp_path: Path) -> None:
    folder, path = _make(case, tmp_path)
    plain = tensors(folder, (), ALL)
    with open_adapter(path, base_of(folder)) as adapter, Checkpoint(folder) as checkpoint:
        wanted = _imported(folder, adapter)
        _check(plain, wanted, moved(plan_import(checkpoint).tensors, adapter.deltas))


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_a_base_that_is_a_gguf(case: str, tmp_path: Path) -> None:
    folder, path = _make(case, tmp_path)
    plain = tensors(folder, (), ALL)
    quantize(folder, tmp_path / "x.gguf", "F32", device="cpu")
    with GGUFModel(tmp_path / "x.gguf") as model:
        base = gguf_base(model)
    with open_adapter(path, base_of(folder)) as adapter:
        wanted = _imported(folder, adapter)
    with open_adapter(path, base) as adapter:
        _check(plain, wanted, moved(base.rules, adapter.deltas))


def test_what_a_gguf_has_no_place_for(tmp_path: Path) -> None:
    folder, path = _make("phi", tmp_path)
    base = base_of(folder)
    seen = Base(base.path, base.tensors, base.config)
    with open_adapter(path, seen) as adapter, pytest.raises(AdapterError, match="has no place for"):
        moved((), adapter.deltas)
