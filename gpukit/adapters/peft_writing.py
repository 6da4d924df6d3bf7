"""A folder as PEFT writes it: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpukit.adapters.experts import ORDER
from gpukit.adapters.peft import PREFIX
from gpukit.adapters.peft_config import CONFIG
from gpukit.errors import AdapterError, ArgumentError
from gpukit.formats import atomic
from gpukit.formats.dtypes import TORCH_TYPES
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.formats.outputs import check_output
from gpukit.formats.safetensors_writer import SafetensorsWriter

WEIGHTS = "adapter_model.safetensors"


def check_folder(out: Path) -> None:
    """`ArgumentError` where `out` is no place for a new folder, `DiskError` where this user may not
    make one. An empty folder may be there."""
    with atomic.disk_errors(out):
        if out.is_dir() and not any(out.iterdir()):
            check_output(out / WEIGHTS)
            return
        if out.exists() or out.is_symlink():
            raise ArgumentError(f"{out}: something is there; name a folder to be made")
    check_output(out)


def linear(module: str, b: Tensor, a: Tensor) -> dict[str, Tensor]:
    """The tensors of B·A of a linear module by their names in the file."""
    name = PREFIX + module
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def embedding(module: str, b: Tensor, a: Tensor) -> dict[str, Tensor]:
    """Those of an embedding, `b` `[tokens, rank]`, which PEFT has transposed."""
    name = PREFIX + module
    return {
        f"{name}.lora_embedding_A": b.t().contiguous(),
        f"{name}.lora_embedding_B": a.t().contiguous(),
    }


def experts(module: str, parts: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """Those of the stacks of a module of experts, by the parameter's name B and A of each expert:
    the last parameter's wrapper lies around those of the others."""
    found: dict[str, Tensor] = {}
    name = PREFIX + module
    for parameter in reversed([parameter for parameter in ORDER if parameter in parts]):
        pairs = parts[parameter]
        rows, rank = pairs[0][0].shape
        by_rank = torch.stack([b for b, _ in pairs], dim=-1)
        found[f"{name}.lora_A.weight"] = torch.cat([a for _, a in pairs])
        found[f"{name}.lora_B.weight"] = by_rank.view(rows, rank * len(pairs))
        name += ".base_layer"
    return found


def whole(name: str, values: Tensor) -> dict[str, Tensor]:
    """A tensor that takes the place of the base's (modules_to_save)."""
    return {PREFIX + name: values}


def targets(changed: Iterable[str], modules: Sequence[str]) -> list[str]:
    """target_modules that mean `changed` of all `modules` and no others: the end of a name where
    all modules of that end are meant, else whole names."""
    changed = set(changed)
    ends: dict[str, list[str]] = {}
    for module in modules:
        ends.setdefault(module.rpartition(".")[2], []).append(module)
    found: list[str] = []
    for end, names in ends.items():
        meant = [name for name in names if name in changed]
        found += [end] if len(meant) == len(names) else meant
    return sorted(found)


def config(rank: int, target_modules: Sequence[str], base: str, **settings: Any) -> dict[str, Any]:
    """What adapter_config.json holds, as this PEFT fills it; alpha is the rank."""
    import peft

    made: Any = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(target_modules) or None,
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
        **settings,
    )
    found: dict[str, Any] = made.to_dict()
    found.pop("runtime_config", None)
    return {key: sorted(v) if isinstance(v, set) else v for key, v in found.items()}


def write_folder(
    out: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], kind: str
) -> int:
    """Make `out` with `tensors` as `kind` and `settings`; the bytes of the weights. The folder is
    there whole or not at all: adapter_config.json, without which it is none, comes last.

    `AdapterError` where a number is too large for `kind`, DiskError where the disk refuses.
    """
    text = json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"
    made = not out.exists()
    specs = [TensorSpec(name, tuple(t.shape)[::-1], kind) for name, t in tensors.items()]
    try:
        with atomic.disk_errors(out):
            out.mkdir(exist_ok=True)
        with SafetensorsWriter(out / WEIGHTS, specs) as writer:
            for number, (name, values) in enumerate(tensors.items()):
                writer.write(number, _bytes(name, values, kind))
        atomic.atomic_write(out / CONFIG, text)
    except BaseException:
        _remove(out, made)
        raise
    return writer.size


def _bytes(name: str, values: Tensor, kind: str) -> memoryview:
    found = values.to(TORCH_TYPES[kind])
    if not torch.isfinite(found).all():
        raise AdapterError(f"{name}: numbers beyond {kind}; choose F32 or BF16")
    return found.contiguous().view(torch.uint8).numpy().data


def _remove(out: Path, made: bool) -> None:
    """What a write that failed has left."""
    for name in (WEIGHTS, CONFIG):
        atomic.remove(out / name)
    if made and out.is_dir():
        out.rmdir()
