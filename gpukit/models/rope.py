"""RoPE as checkpoints describe it: read from config.json, written as metadata and as divisors.

Facts: transformers' modeling_rope_utils (which of several values counts), llama.cpp's converter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.gguf_fields import Field, f32, string, u32
from gpukit.models.config import ModelConfig
from gpukit.models.values import flag, inside, real, section, stored, whole

if TYPE_CHECKING:
    from torch import Tensor

# Kinds that need nothing but their base.
PLAIN = ("default", "none")

# What YaRN may be tuned with: names in config.json, the first that is there counts; end of the key.
YARN = (
    (("extrapolation_factor",), "ext_factor"),
    (("attention_factor", "attn_factor"), "attn_factor"),
    (("beta_fast",), "beta_fast"),
    (("beta_slow",), "beta_slow"),
)


def with_rope(
    model: ModelConfig, config: Mapping[str, Any], scalings: Sequence[str], rounded: bool = True
) -> ModelConfig:
    """`model` with the RoPE of a config.json of transformers 4 (`rope_scaling`, `rope_theta`) or 5
    (`rope_parameters`); where both are there, `rope_scaling` counts, as in transformers.

    `scalings` are the kinds that the architecture's GGUFs can hold, and `rounded` says whether the
    limits of YaRN are rounded when those are run; `model` has the default theta.
    """
    name = "rope_scaling" if section(config, "rope_scaling") else "rope_parameters"
    rope = section(config, name)
    kind = rope_kind(rope)
    theta = real(rope, "rope_theta", real(config, "rope_theta", model.rope_theta))
    model = replace(model, rope_theta=theta)
    if kind in PLAIN:
        return model
    if kind not in scalings:
        raise CheckpointError(
            f"config.json: RoPE scaling {kind!r} cannot be written into a {model.arch} GGUF; "
            f"known: {', '.join((*PLAIN, *scalings))}"
        )
    with inside(name):
        return _scaled(replace(model, rope_scaling=kind), rope, rounded)


def _scaled(model: ModelConfig, rope: Mapping[str, Any], rounded: bool) -> ModelConfig:
    """`model`, whose kind of scaling is known, with the numbers of its RoPE."""
    if model.rope_scaling == "linear":
        return replace(model, rope_factor=real(rope, "factor"))
    model = replace(
        model, rope_original_ctx=whole(rope, "original_max_position_embeddings", model.n_ctx)
    )
    if model.rope_scaling == "yarn":
        _check_rounded(rope, model.arch, rounded)
        return replace(
            model,
            rope_factor=real(rope, "factor"),
            rope_yarn=_yarn(rope),
            rope_rounded=rounded,
        )
    return replace(
        model,
        rope_factor=real(rope, "factor", 8.0),
        rope_low=real(rope, "low_freq_factor", 1.0),
        rope_high=real(rope, "high_freq_factor", 4.0),
    )


def split_ropes(
    config: Mapping[str, Any], arch: str, local_theta: float
) -> tuple[dict[str, Any], float]:
    """What `config` would say of the RoPE of whole layers if it were the only one, and the base of
    that of windowed ones, `local_theta` where it says none; `CheckpointError` where windowed ones
    are scaled."""
    both = section(config, "rope_parameters")
    if both and "full_attention" not in both:
        raise CheckpointError("config.json: rope_parameters has no full_attention")
    rope = {**section(both, "full_attention"), **section(config, "rope_scaling")}
    local = section(both, "sliding_attention")
    if local.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"config.json: RoPE scaling {local['rope_type']!r} of sliding_attention cannot be "
            f"written into a {arch} GGUF; known: default"
        )
    said = {"rope_parameters": rope, "rope_scaling": None}
    return said, real(local, "rope_theta", local_theta)


def rotated_part(config: Mapping[str, Any], head_dim: int, part: float) -> int:
    """How many values of a head RoPE turns by partial_rotary_factor, which is `part` where
    config.json has none; `CheckpointError` where that is no even number."""
    rope = section(config, "rope_scaling") or section(config, "rope_parameters")
    said = real(config, "partial_rotary_factor", part)
    part = real(rope, "partial_rotary_factor", said)
    n_rot = int(head_dim * part)
    if n_rot % 2 or not 0 < n_rot <= head_dim:
        raise CheckpointError(
            f"config.json: partial_rotary_factor {part} of head_dim {head_dim} is no even number "
            "of values"
        )
    return n_rot


def rope_kind(rope: Mapping[str, Any]) -> str:
    """The kind of scaling that a rope_scaling or rope_parameters names."""
    return str(rope.get("rope_type") or rope.get("type") or PLAIN[0]).lower()


def _check_rounded(rope: Mapping[str, Any], arch: str, rounded: bool) -> None:
    """`CheckpointError` for a YaRN that rounds its limits where GGUFs of `arch` are run otherwise,
    or does not where they do."""
    if flag(rope, "truncate", True) != rounded:
        found, how = ("false", "rounds") if rounded else ("true", "does not round")
        raise CheckpointError(
            f"config.json: truncate of the RoPE scaling is {found}; the YaRN of {arch} GGUFs {how} "
            "its limits"
        )


def _yarn(rope: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    scales = (rope.get("mscale"), rope.get("mscale_all_dim"))
    if all(scales) and rope.get("attention_factor") is None:
        raise CheckpointError(
            f"config.json: mscale {scales[0]} and mscale_all_dim {scales[1]} of the RoPE scaling "
            "cannot be written into a GGUF; give their quotient as attention_factor"
        )
    found = []
    for names, key in YARN:
        name = next((name for name in names if rope.get(name) is not None), None)
        if name is not None:
            found.append((key, real(rope, name)))
    return tuple(found)


def rope_fields(config: ModelConfig) -> list[Field]:
    """The metadata of RoPE, in the converter's order; llama3 has its divisors instead."""
    at, found = f"{config.arch}.rope", []
    if config.rope_scaling in ("linear", "yarn"):
        found.append(string(f"{at}.scaling.type", config.rope_scaling))
        found.append(f32(f"{at}.scaling.factor", config.rope_factor))
    if config.rope_scaling == "yarn":
        found.append(u32(f"{at}.scaling.original_context_length", config.rope_original_ctx))
        found += [f32(f"{at}.scaling.yarn_{key}", value) for key, value in config.rope_yarn]
    found.append(f32(f"{at}.freq_base", config.rope_theta))
    if config.rope_theta_local:
        found.append(f32(f"{at}.freq_base_swa", config.rope_theta_local))
    return found


def rope_divisors(config: ModelConfig) -> "Tensor":
    """What llama3 divides each frequency by: float32 `[head_dim / 2]`.

    1 for short wavelengths, the factor for long ones, between them a smooth passage; every step is
    rounded to float32, as in the converter, which works on tensors of no dimension.
    """
    import torch

    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    short = config.rope_original_ctx / config.rope_high
    long = config.rope_original_ctx / config.rope_low
    divisors = []
    for frequency in 1.0 / (config.rope_theta**exponents):
        length = 2 * math.pi / frequency
        if length < short:
            divisors.append(1.0)
        elif length > long:
            divisors.append(config.rope_factor)
        else:
            span = config.rope_high - config.rope_low
            smooth = (config.rope_original_ctx / length - config.rope_low) / span
            divisors.append(float(1 / ((1 - smooth) / config.rope_factor + smooth)))
    return torch.tensor(divisors, dtype=torch.float32)


def yarn_divisors(config: ModelConfig) -> "Tensor":
    """What YaRN divides each frequency by: float32 `[n_rot / 2]`.

    1 for frequencies that turn `beta_fast` times and more in the original context, the factor for
    those that turn less than `beta_slow` times, between them a share of each.
    """
    import torch

    dim, settings = config.n_rot or config.head_dim, dict(config.rope_yarn)

    def place(turns: float) -> float:
        length = math.log(config.rope_original_ctx / (turns * 2 * math.pi))
        return dim * length / (2 * math.log(config.rope_theta))

    low, high = place(settings.get("beta_fast", 32.0)), place(settings.get("beta_slow", 1.0))
    if config.rope_rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float32)
    slow = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return 1 / (slow / config.rope_factor + (1 - slow))


def yarn_growth(config: ModelConfig, by: float = 1.0) -> float:
    """1 and `by` tenths of the natural logarithm of YaRN's factor, if that is above 1."""
    return 0.1 * by * math.log(config.rope_factor) + 1 if config.rope_factor > 1 else 1.0


def yarn_magnitude(config: ModelConfig) -> float:
    """What YaRN multiplies rotated values by."""
    usual = yarn_growth(config) / yarn_growth(config, config.rope_log_multiplier)
    return dict(config.rope_yarn).get("attn_factor", usual)


def stored_yarn(found: Mapping[str, Field], arch: str) -> tuple[tuple[str, float], ...]:
    """The settings of YaRN in a GGUF's metadata; `GGUFError` for one that cannot be run."""
    at = f"{arch}.rope.scaling.yarn_"
    settings = {key: stored(found, at + key) for _, key in YARN if at + key in found}
    if settings.get("ext_factor", 1.0) != 1.0:
        raise GGUFError(f"{at}ext_factor is {settings['ext_factor']}; YaRN can be run with 1")
    return tuple(settings.items())
