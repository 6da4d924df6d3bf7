"""What every architecture shares: its configuration, the plan of an import, and the registry."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpukit.errors import CheckpointError, GGUFError
from gpukit.events import Report, ignore
from gpukit.formats.gguf_fields import Field, type_sizes

if TYPE_CHECKING:
    from torch import Tensor

    from gpukit.models.decoder import Decoder
    from gpukit.models.fp8 import Scales
    from gpukit.models.weights import Weights

FILE_TYPE = "general.file_type"
# Of the block layouts (GGML_QNT_VERSION).
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a decoder, named as in llama.cpp; counts and sizes, no units.

    `rope_scaling` is "none", "linear", "yarn" or "llama3" (the last lives in the tensor
    rope_freqs.weight); `rope_yarn` holds the ends of YaRN's own keys with their values.
    `rope_long` and `rope_short` divide frequencies in contexts longer than `rope_original_ctx`, and
    in others.
    `n_rot` values of a head are rotated (0: all), and multiplied by `rope_magnitude`.
    `rope_theta_local` is the base of windowed layers, which are not scaled (0: that of the others).
    `n_expert_used` of `n_expert` experts take part for each position; 0 and 0: none.
    `attention_scale` multiplies queries times keys (0: the root of head_dim divides them);
    `attention_cap` and `logit_cap` c turn a score or logit x into c tanh(x/c) (0: no cap).
    `head_dim_said` tells whether metadata have a key for head_dim. A position of a windowed layer
    sees `window` positions, itself included, where `window` is not 0; `windowed` says of each layer
    whether it is one (empty: every layer is).
    """

    arch: str
    n_layer: int
    n_ctx: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rms_eps: float
    rope_theta: float
    vocab_size: int
    rope_theta_local: float = 0.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original_ctx: int = 8192
    rope_yarn: tuple[tuple[str, float], ...] = ()
    rope_long: tuple[float, ...] = ()
    rope_short: tuple[float, ...] = ()
    rope_magnitude: float = 1.0
    n_rot: int = 0
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    attention_scale: float = 0.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    head_dim_said: bool = True
    window: int = 0
    windowed: tuple[bool, ...] = ()

    def window_of(self, layer: int) -> int:
        """How many positions `layer` sees, the own one included; 0: all."""
        return self.window if not self.windowed or self.windowed[layer] else 0


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF to be: where its values come from and what happens to them.

    `sources` are stacked, each as many rows as the others; most tensors have one. `dtype` is what
    the checkpoint holds, as llama.cpp's converter sees it: BF16, F16 or F32.
    `transform` takes a slab `[k * row_group, ne0]` and gives one of the same shape; tensors of one
    dimension are one row. Computed tensors have `values` (float32) and no `sources`.
    """

    name: str
    ne: tuple[int, ...]
    sources: tuple[str, ...]
    dtype: str
    row_group: int = 1
    transform: "Callable[[Tensor], Tensor] | None" = None
    values: "Tensor | None" = None

    @property
    def n_elements(self) -> int:
        return prod(self.ne)


@dataclass(frozen=True)
class ImportPlan:
    """A checkpoint as a GGUF to be: metadata and tensors in the order of llama.cpp's converter.

    `fields` has general.file_type in its place with the value 0; see `with_file_type`. `scales`
    belong to weights in 8-bit floats; `left_out` are tensors of the checkpoint that nothing uses;
    `warnings` are lines for the user.
    """

    config: ModelConfig
    fields: tuple[Field, ...]
    tensors: tuple[PlannedTensor, ...]
    scales: "Scales"
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One tensor of the checkpoint: its GGUF name, shape (outermost first), and transform.

    With `stack` there are so many, `source` with each number in the place of {}, which become one
    tensor of a dimension more. It is written when the last of them has been read; rules of one
    `group` wait for each other.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    required: bool = True
    row_group: int = 1
    transform: "Callable[[Tensor], Tensor] | None" = None
    stack: int = 0
    group: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in the checkpoint, in the order of the stack."""
        return tuple(self.source.format(i) for i in range(self.stack)) or (self.source,)


class Vocabulary(Protocol):
    """Folder and config.json -> every tokenizer.* field, in the converter's order; `pre` names the
    pre-tokenizer of a byte-level BPE that is not recognised; `report` is told what is left out."""

    def __call__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        pre: str | None = None,
        report: Report = ignore,
    ) -> list[Field]: ...


@dataclass(frozen=True)
class Architecture:
    """One architecture: how it is imported and how it is read back.

    read      config.json -> ModelConfig, CheckpointError where a value makes no sense
    rules     the tensors that a checkpoint of this configuration has
    fields    the architecture's own metadata, general.file_type included
    first_fields  what the converter writes before general.type
    vocabulary  the vocabulary of a folder as metadata
    restore   metadata -> ModelConfig
    build     the weights of a file -> a decoder that runs
    computed  tensors that no checkpoint holds, such as RoPE factors
    skipped   endings of the names of tensors that are left out: copies, and what is computed anew
    skipped_parts  beginnings of names: the parts of a larger model that are not text
    renamed   the name of a checkpoint's tensor -> the one that `rules` have

    Several classes may become one GGUF architecture; `restore` and `build` are then the same.
    """

    name: str
    classes: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], ModelConfig]
    rules: Callable[[ModelConfig], Sequence[Rule]]
    fields: Callable[[ModelConfig], Sequence[Field]]
    vocabulary: Vocabulary
    restore: Callable[[Mapping[str, Field]], ModelConfig]
    build: Callable[[ModelConfig, "Weights"], "Decoder"]
    computed: Callable[[ModelConfig], Sequence[PlannedTensor]] = lambda _config: ()
    first_fields: Callable[[ModelConfig], Sequence[Field]] = lambda _config: ()
    skipped: tuple[str, ...] = ()
    skipped_parts: tuple[str, ...] = ()
    renamed: Callable[[str], str] = str

    def leaves_out(self, name: str) -> bool:
        """Whether the tensor `name` of a checkpoint has no place in a GGUF."""
        return name.endswith(self.skipped) or name.startswith(self.skipped_parts)


@cache
def architectures() -> tuple[Architecture, ...]:
    """Every architecture, collected from the modules of this package."""
    from gpukit import models

    found: list[Architecture] = []
    for module in pkgutil.iter_modules(models.__path__, models.__name__ + "."):
        found.extend(getattr(importlib.import_module(module.name), "ARCHITECTURES", ()))
    return tuple(found)


def by_class(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a config.json; `CheckpointError` names what is known and what is near."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise CheckpointError(f"{where}: no architectures; a model's config.json names its class")
    known = {name: arch for arch in architectures() for name in arch.classes}
    if classes[0] in known:
        return known[classes[0]]
    near = difflib.get_close_matches(classes[0], known, n=1)
    hint = f"; near: {near[0]}" if near else ""
    raise CheckpointError(
        f"{where}: unknown architecture {classes[0]!r}; known: {', '.join(sorted(known))}{hint}"
    )


def by_name(name: str | None, where: str) -> Architecture:
    """The architecture that a GGUF names; `GGUFError` lists the known ones."""
    for arch in architectures():
        if arch.name == name:
            return arch
    known = ", ".join(sorted({arch.name for arch in architectures()}))
    raise GGUFError(f"{where}: cannot run architecture {name!r}; known: {known}")


def with_file_type(fields: Sequence[Field], number: int) -> tuple[Field, ...]:
    """`fields` with general.file_type set to llama.cpp's file type `number`, where it stands."""
    return tuple(replace(f, value=number) if f.key == FILE_TYPE else f for f in fields)


# Tensors that stay float32 in a converted file whatever its type (routers).
_ALWAYS_F32 = (".ffn_gate_inp.weight",)


def float_type(name: str, ne: Sequence[int], wanted: str) -> str:
    """The type of a tensor in a file converted to F32, F16, BF16 or Q8_0, as llama.cpp decides.

    One dimension, norms, routers and what is no weight stay F32; rows that blocks do not divide
    fall back to F16.
    """
    if len(ne) <= 1 or name.endswith("_norm.weight") or name.endswith(_ALWAYS_F32):
        return "F32"
    if not name.endswith(".weight"):
        return "F32"
    return wanted if ne[0] % type_sizes()[wanted].block == 0 else "F16"


def auto_type(tensors: Sequence[PlannedTensor]) -> str:
    """The type that llama.cpp's converter chooses by itself: that of the first weight with two
    dimensions in BF16 or F16, F16 where there is none."""
    halves = (t.dtype for t in tensors if t.sources and len(t.ne) >= 2)
    return next((dtype for dtype in halves if dtype in ("BF16", "F16")), "F16")
