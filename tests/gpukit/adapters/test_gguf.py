"""GGUF adapters mean what llama.cpp means by them: W + α/r·B·A of the GGUF's own tensors.

The base with the delta, imported, is the imported base with llama.cpp's sum, to the bit: an import
only moves rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support import checkpoints, zoo_build
from support.adapters import base_of
from support.gguf_adapters import write_adapter
from support.slabs import tensors
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.delta import LowRank, Replaced, merged, merged_rows
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.values import Values
from gpukit.errors import AdapterError
from gpukit.sources.checkpoint import CheckpointSource

ALL = 1 << 30
LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("attn_q", "attn_k", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def _step(adapter: Adapter) -> Any:
    """A step of an import that merges `adapter`."""

    def step(name: str, row: int, rows: Tensor) -> Tensor:
        records = adapter.deltas.get(name)
        return rows if records is None else merged_rows(rows.float(), row, records)

    return step


def _values(numbers: Tensor) -> Any:
    values = numbers.numpy()
    return Values("x", Path("x"), "F32", values.shape, lambda f, n: values[f : f + n])


def _check(folder: Path, arch: str, names: Sequence[str], alpha: float = 6.0) -> None:
    plain = tensors(folder, (), ALL)
    base = base_of(folder)
    with CheckpointSource(folder) as source:
        shapes = {t.name: tuple(reversed(t.ne)) for t in source.tensors}
    path = folder.parent / "adapter.gguf"
    pairs = write_adapter(path, arch, {name: shapes[name] for name in names}, alpha, rank=4)
    scale = alpha / 4 if alpha else 1.0
    with open_adapter(path, base) as adapter:
        assert adapter.form == "GGUF LoRA"
        found = tensors(folder, (_step(adapter),), ALL)
        slabs = tensors(folder, (_step(adapter),), 100)
    for name, values in plain.items():
        wanted = values
        if name in pairs:
            shape = shapes[name]
            a, b = pairs[name]
            each = values.view(-1, *shape[-2:])
            parts = zip(each, a.view(-1, *a.shape[-2:]), b.view(-1, *b.shape[-2:]), strict=True)
            sums = [merged(w, [LowRank(_values(y), _values(x), scale)]) for w, x, y in parts]
            wanted = torch.cat(sums).view(values.shape)
            assert not wanted.equal(values)
        assert found[name].equal(wanted), name
        assert slabs[name].equal(wanted), name


ZOO = {
    "mixtral-12": ("llama", EXPERTS),
    "gemma3-vision": ("gemma3", LAYER),
    "ministral3-vision": ("mistral3", LAYER),
    "phi4": ("phi3", ("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "qwen2-tied": ("qwen2", LAYER),
    "qwen3-untied": ("qwen3", LAYER),
}


@pytest.mark.parametrize("name", ZOO)
def test_adapters_of_the_zoo(name: str, tmp_path: Path) -> None:
    arch, layer = ZOO[name]
    folder = zoo_build.build(name, tmp_path)
    _check(folder, arch, [f"blk.0.{part}.weight" for part in layer])


@pytest.mark.parametrize("alpha", [6.0, 0.0])
def test_rows_of_a_llama_are_moved_back(alpha: float, tmp_path: Path) -> None:
    folder = checkpoints.build("narrow-heads", tmp_path)
    names = [f"blk.1.{part}.weight" for part in LAYER]
    _check(folder, "llama", [*names, "token_embd.weight", "output.weight"], alpha)


def test_norms_take_the_place_where_a_gguf_has_them_as_they_are(tmp_path: Path) -> None:
    for name, arch, refused in (("mistral-v0.3", "llama", False), ("gemma", "gemma", True)):
        folder = zoo_build.build(name, tmp_path)
        width = base_of(folder).tensors["model.norm.weight"]
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 1.0)
        writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if refused:
            with pytest.raises(AdapterError, match="a GGUF has changed cannot be merged"):
                open_adapter(path, base_of(folder))
            continue
        with open_adapter(path, base_of(folder)) as adapter:
            (record,) = adapter.deltas["model.norm.weight"]
            assert isinstance(record, Replaced)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other-base": ({"arch": "qwen2"}, "made for 'qwen2', the base is 'llama'"),
    "a-model": ({"general__type": "model"}, "general.type 'model' and adapter.type 'lora'"),
    "other-tuner": ({"adapter__type": "ia3"}, "adapter.type 'ia3'"),
    "invocation": ({"adapter__alora__invocation_tokens": "x"}, "aLoRA works only behind"),
    "shape": ({"shape": (40, 288)}, r"\[4, 288\] and \[40, 4\] for a tensor of \[144, 288\]"),
    "alpha": ({"alpha": float("nan")}, "adapter.lora.alpha is nan"),
    "name": ({"name": "blk.9.attn_q.weight"}, r"blk\.9\.attn_q\.weight: a llama GGUF of this base"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    settings = dict(settings)
    folder = checkpoints.build("narrow-heads", tmp_path)
    adapted = {settings.pop("name", "blk.1.attn_q.weight"): settings.pop("shape", (144, 288))}
    alpha, arch = settings.pop("alpha", 1.0), settings.pop("arch", "llama")
    fields = {"general__type": "adapter", "adapter__type": "lora", **settings}
    fields = {key.replace("__", "."): value for key, value in fields.items()}
    write_adapter(tmp_path / "x.gguf", arch, adapted, alpha, 4, **fields)
    with pytest.raises(AdapterError, match=message):
        open_adapter(tmp_path / "x.gguf", base_of(folder))
