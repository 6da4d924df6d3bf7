"""Phi-3 mini, small and medium, Phi-3.5, Phi-4, Phi-4-mini and their reasoning ones: import from
`Phi3ForCausalLM` checkpoints, and the decoder; the text of Phi-4-multimodal
(`Phi4MultimodalForCausalLM` of transformers, `Phi4MMForCausalLM` as it was published) and of
Phi-4-reasoning-vision (`Phi4ForCausalLMV`), too.

Queries, keys and values are one matrix, gate and up another. Models of 128k contexts have two sets
of divisors of RoPE's frequencies: as in llama.cpp the size of the context chooses one. Facts:
transformers' Phi3Config and Phi4MultimodalConfig, llama.cpp's converter (its own list of metadata)
and loader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isclose, log, sqrt
from typing import Any

import numpy as np

from gpukit.errors import CheckpointError
from gpukit.formats.file_types import FILE_TYPE
from gpukit.formats.gguf_fields import Field, f32, u32
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rope import PLAIN, rope_kind
from gpukit.models.rules import PlannedTensor, Rule
from gpukit.models.sizes import SILU, check_activation, check_square, read_sizes, restore_sizes
from gpukit.models.style import Style
from gpukit.models.tables import FUSED, SKIPPED, VISION, decoder_rules
from gpukit.models.values import real, section, whole
from gpukit.tokenizer import phi3_vocabulary

NAME = "phi3"
DEFAULTS = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
MULTIMODAL_DEFAULTS = {
    **DEFAULTS, "vocab_size": 200064, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
ORIGINAL_CONTEXT = 4096
# Pictures and sound are embedded by parts of their own, and weights of a LoRA each are added to
# layers where a prompt has some.
EXTENSIONS = ("model.embed_tokens_extend.", "model.mm_projector.", "mm_projector.")
LORAS = tuple(f".lora_{part}.{name}.weight" for part in "AB" for name in ("vision", "speech"))
# One thing by its names in the order of time.
LONGROPE = ("su", "yarn", "longrope")


def read(config: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with `defaults`, Phi3Config's."""
    check_activation(config, NAME, SILU)
    rope = section(config, "rope_scaling") or section(config, "rope_parameters")
    plain = {**config, "rope_scaling": None, "rope_parameters": {**rope, "rope_type": "default"}}
    model = check_square(read_sizes(plain, NAME, defaults))
    part = real(rope, "partial_rotary_factor", real(config, "partial_rotary_factor", 1.0))
    window = config.get("sliding_window")
    model = replace(
        model,
        n_rot=_rotated(model, part),
        rope_original_ctx=whole(config, "original_max_position_embeddings", ORIGINAL_CONTEXT),
        window=0 if window is None else whole(config, "sliding_window"),
    )
    kind = rope_kind(rope)
    if kind in PLAIN:
        return model
    if kind not in LONGROPE:
        raise CheckpointError(
            f"config.json: RoPE scaling {kind!r} cannot be written into a {NAME} GGUF; known: "
            f"{', '.join((*PLAIN, *LONGROPE))}"
        )
    _check_original(rope, model.rope_original_ctx)
    return replace(
        model,
        rope_long=_divisors(rope, "long_factor", model),
        rope_short=_divisors(rope, "short_factor", model),
        rope_magnitude=_magnitude(rope, model),
    )


def _rotated(model: ModelConfig, part: float) -> int:
    n_rot = int(part * model.n_embd) // model.n_head
    if n_rot != int(model.head_dim * part) or n_rot % 2 or not 0 < n_rot <= model.head_dim:
        raise CheckpointError(
            f"config.json: partial_rotary_factor {part} of head_dim {model.head_dim} is no even "
            "number of values"
        )
    return n_rot


def _check_original(rope: Mapping[str, Any], original: int) -> None:
    """`CheckpointError` where the scaling has another original context than config.json, which is
    the one that transformers runs."""
    key = "original_max_position_embeddings"
    if (inside := whole(rope, key, original)) != original:
        raise CheckpointError(
            f"config.json: {key} is {original}, that of the RoPE scaling {inside}; give both the "
            "one that the model was trained with"
        )


def _divisors(rope: Mapping[str, Any], key: str, model: ModelConfig) -> tuple[float, ...]:
    values, count = rope.get(key), model.n_rot // 2
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} values" if isinstance(values, list) else repr(values)
        raise CheckpointError(
            f"config.json: {key} of the RoPE scaling is {found}; {count} are needed"
        )
    return tuple(real({key: value}, key) for value in values)


def _magnitude(rope: Mapping[str, Any], model: ModelConfig) -> float:
    """What rotated values are multiplied by, from the two context lengths."""
    scale = model.n_ctx / model.rope_original_ctx
    found = sqrt(1 + log(scale) / log(model.rope_original_ctx)) if scale > 1 else 1.0
    for key, wanted in (("factor", scale), ("attention_factor", found)):
        if not isclose(value := real(rope, key, wanted), wanted, rel_tol=1e-6):
            raise CheckpointError(
                f"config.json: {key} {value:g} of the RoPE scaling is not {wanted:g}, which "
                f"follows from contexts of {model.n_ctx} and {model.rope_original_ctx} and is what "
                f"a {NAME} GGUF is run with"
            )
    return found


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, with its shape."""
    return decoder_rules(config, FUSED)


def first_fields(config: ModelConfig) -> list[Field]:
    """The magnitude of models with two sets of divisors."""
    if not config.rope_long:
        return []
    return [f32(f"{NAME}.rope.scaling.attn_factor", config.rope_magnitude)]


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [
        u32(f"{NAME}.context_length", config.n_ctx),
        u32(f"{NAME}.rope.scaling.original_context_length", config.rope_original_ctx),
        u32(f"{NAME}.embedding_length", config.n_embd),
        u32(f"{NAME}.feed_forward_length", config.n_ff),
        u32(f"{NAME}.block_count", config.n_layer),
        u32(f"{NAME}.attention.head_count", config.n_head),
        u32(f"{NAME}.attention.head_count_kv", config.n_head_kv),
        f32(f"{NAME}.attention.layer_norm_rms_epsilon", config.rms_eps),
        u32(f"{NAME}.rope.dimension_count", config.n_rot),
        f32(f"{NAME}.rope.freq_base", config.rope_theta),
        u32(FILE_TYPE, 0),
        u32(f"{NAME}.attention.sliding_window", config.window),
    ]


def computed(config: ModelConfig) -> Sequence[PlannedTensor]:
    """The divisors of each frequency, for long contexts and for short ones."""
    named = (("long", config.rope_long), ("short", config.rope_short))
    return [
        PlannedTensor(
            f"rope_factors_{name}.weight", (len(values),), (), "F32",
            values=np.array(values, dtype=np.float32),
        )
        for name, values in named
        if values
    ]  # fmt: skip


def _text_name(name: str) -> str:
    """The name of a tensor as where nothing but text is read."""
    return name.replace(".base_layer.", ".")


TEXT = Architecture(
    name=NAME,
    classes=("Phi3ForCausalLM",),
    read=read,
    rules=rules,
    fields=fields,
    vocabulary=phi3_vocabulary,
    style=Style(fused=True),
    # RoPE may rotate a part of a head.
    restoring=partial(restore_sizes, partial=True),
    computed=computed,
    first_fields=first_fields,
)
ARCHITECTURES = (
    TEXT,
    replace(TEXT, classes=("Phi4ForCausalLMV",), skipped_parts=(*VISION, *EXTENSIONS)),
    replace(
        TEXT,
        classes=("Phi4MultimodalForCausalLM", "Phi4MMForCausalLM"),
        read=partial(read, defaults=MULTIMODAL_DEFAULTS),
        skipped=(*SKIPPED, *LORAS),
        skipped_parts=EXTENSIONS,
        renamed=_text_name,
    ),
)
