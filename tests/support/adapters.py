"""Tiny random models of transformers with adapters of PEFT, and what PEFT merges them into.

Everything is in float64, so that what differs is a fault and no rounding.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import merged
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.together import combined
from gpukit.formats.checkpoint import Checkpoint

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
UNTIED = {"tie_word_embeddings": False}
FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, UNTIED),
    "llama-biases": (
        transformers.LlamaConfig, {**UNTIED, "attention_bias": True, "mlp_bias": True}
    ),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, UNTIED),
    "mixtral": (transformers.MixtralConfig, {**UNTIED, "num_local_experts": 3}),
    "gemma": (transformers.GemmaConfig, {"head_dim": 6}),
    "gemma2": (transformers.Gemma2Config, {"head_dim": 6}),
    "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 6}),
    "phi3": (transformers.Phi3Config, UNTIED),
    "qwen2": (transformers.Qwen2Config, UNTIED),
    "qwen3": (transformers.Qwen3Config, {**UNTIED, "head_dim": 6}),
    "qwen3.5": (
        transformers.Qwen3_5TextConfig,
        {**UNTIED, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
         "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 4,
         "linear_value_head_dim": 4},
    ),
}  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
DELTA_NET = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the peers, which say how they would rather be called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model(family: str, **settings: Any) -> Any:
    """A random model in float64; `settings` go over those of the family."""
    torch.manual_seed(len(family))
    kind, own = FAMILIES[family]
    config = kind(**{**SIZES, **own, **settings})
    with quiet():
        found = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    for values in found.parameters():
        values.data = torch.randn(values.shape, dtype=torch.float64) / 4
    return found


@dataclass(frozen=True)
class Trained:
    """Folders with a base, an adapter of it, and the two merged by PEFT."""

    base: Path
    adapter: Path
    merged: Path

    def expected(self) -> dict[str, Tensor]:
        """Every tensor that PEFT's merge saves."""
        return load_file(self.merged / "model.safetensors")

    def stored(self) -> dict[str, Tensor]:
        """Every tensor of the base."""
        return load_file(self.base / "model.safetensors")


def train(root: Path, family: str, config: Mapping[str, Any], **settings: Any) -> Trained:
    """A base of `family` with an adapter whose numbers are random, as LoraConfig(**config) makes
    it."""
    made = Trained(root / "base", root / "adapter", root / "merged")
    with quiet():
        plain = model(family, **settings)
        plain.save_pretrained(made.base)
        wrapped = peft.get_peft_model(
            plain, peft.LoraConfig(**config), autocast_adapter_dtype=False
        )
        fill(wrapped)
        wrapped.save_pretrained(made.adapter)
        reloaded(made).merge_and_unload().save_pretrained(made.merged)
    return made


def reloaded(made: Trained) -> Any:
    """The base with the adapter as PEFT loads it: the order of patterns, which decides, is that of
    the file."""
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float64)
        return peft.PeftModel.from_pretrained(plain, made.adapter, autocast_adapter_dtype=False)


def fill(wrapped: Any) -> None:
    """Random numbers for whatever the adapter trains; lengths stay positive."""
    torch.manual_seed(1)
    for name, values in wrapped.named_parameters():
        if values.requires_grad:
            random = torch.randn(values.shape, dtype=values.dtype)
            # In place: what is tied shares its memory.
            values.data.copy_(random.abs() + 0.5 if "magnitude" in name else random)


def train_beside(folder: Path, path: Path, config: Mapping[str, Any]) -> Any:
    """A random adapter of the checkpoint in `folder`, saved at `path`, around its base."""
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        settings = {"r": 2, "lora_alpha": 3, **config}
        wrapped = peft.get_peft_model(plain.eval(), peft.LoraConfig(**settings))
        fill(wrapped)
        for name, values in wrapped.named_parameters():
            if values.requires_grad and "lora_" in name:
                values.data.mul_(0.2)
        wrapped.save_pretrained(path)
    return wrapped.eval()


def base_of(folder: Path) -> Base:
    with Checkpoint(folder) as checkpoint:
        return Base.of(checkpoint)


def ours(made: Trained, **options: Any) -> tuple[dict[str, Tensor], Adapter]:
    """The base with the adapter merged by the reference in float64, and the adapter."""
    with open_adapter(made.adapter, base_of(made.base), **options) as adapter:
        return apply(made.stored(), adapter), adapter


def apply(stored: Mapping[str, Tensor], *adapters: Adapter) -> dict[str, Tensor]:
    """Every tensor with what `adapters` do to it together, in float64."""
    found = dict(stored)
    found |= {name: stored[begin] for name, begin in adapters[0].added.items()}
    for name, records in combined(adapters).items():
        found[name] = merged(found[name], records, torch.float64)
    return found


def check_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """All tensors of `wanted`, within 1e-12 of their largest value: sums of float64 in any order
    of these sizes differ by less than 100 roundings of 1e-16."""
    assert found.keys() >= wanted.keys()
    for name, values in wanted.items():
        assert found[name].shape == values.shape, name
        error, largest = (found[name] - values).abs().max(), values.abs().max()
        assert error <= 1e-12 * largest, f"{name}: {error} of {largest}"


def check_near(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], near: float) -> None:
    """All tensors of `wanted` and no others, within `near` of their largest value."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        error, largest = (found[name] - values).abs().max(), values.abs().max()
        assert error <= near * largest, f"{name}: {error} of {largest}"


def change(made: Trained, end: str, how: Callable[[Tensor], Tensor]) -> None:
    """Change the first tensor of the merged model whose name ends so."""
    path = made.merged / "model.safetensors"
    values = load_file(path)
    name = next(name for name in values if name.endswith(end))
    values[name] = how(values[name]).contiguous()
    save_file(values, path, {"format": "pt"})
