"""Sliding windows: from config.json and metadata, and as metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.gguf_fields import Field, ValueType, array, u32
from gpukit.models.config import ModelConfig
from gpukit.models.values import count, whole


def with_window(
    model: ModelConfig, config: Mapping[str, Any], windowed: Sequence[bool] = ()
) -> ModelConfig:
    """`model` with the sliding window of a config.json, if it has one that is shorter than the
    context; `windowed` says which layers use it (empty: every one)."""
    if config.get("sliding_window") is None or (windowed and not any(windowed)):
        return model
    window = whole(config, "sliding_window")
    if window >= model.n_ctx:
        return model
    return replace(model, window=window, windowed=() if all(windowed) else tuple(windowed))


def windowed_layers(config: Mapping[str, Any], model: ModelConfig) -> list[bool] | None:
    """Which layers have a window, from config.json's layer_types; None where there are none."""
    kinds, known = config.get("layer_types"), ("sliding_attention", "full_attention")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or not all(kind in known for kind in kinds):
        raise CheckpointError(f"config.json: layer_types hold other than {' and '.join(known)}")
    if len(kinds) != model.n_layer:
        raise CheckpointError(
            f"config.json: {len(kinds)} layer_types for {model.n_layer} num_hidden_layers"
        )
    return [kind == known[0] for kind in kinds]


def window_fields(config: ModelConfig) -> list[Field]:
    """A window's metadata, which the converter leaves out and llama.cpp passes over."""
    if not config.window:
        return []
    at = f"{config.arch}.attention"
    fields = [u32(f"{at}.sliding_window", config.window)]
    if config.windowed:
        fields.append(array(f"{at}.sliding_window_pattern", ValueType.BOOL, config.windowed))
    return fields


def with_stored_window(config: ModelConfig, found: Mapping[str, Field]) -> ModelConfig:
    """`config` with the window that a GGUF's metadata describe; a pattern is one entry a layer or a
    period, whose last layer sees everything."""
    at = f"{config.arch}.attention.sliding_window"
    field, pattern = found.get(at), found.get(f"{at}_pattern")
    # A zero says that there is none.
    window = 0 if field is None or field.value == 0 else count(found, at)
    if pattern is None:
        return replace(config, window=window)
    if pattern.type is ValueType.ARRAY:
        windowed = tuple(bool(value) for value in pattern.value)
    else:
        period = count(found, f"{at}_pattern")
        windowed = tuple(layer % period < period - 1 for layer in range(config.n_layer))
    if len(windowed) != config.n_layer:
        raise GGUFError(f"{at}_pattern has {len(windowed)} entries for {config.n_layer} layers")
    return replace(config, window=window, windowed=windowed)


def periodic(n_layer: int, period: int) -> tuple[bool, ...]:
    """Windows on all but every `period`-th layer."""
    return tuple((layer + 1) % period != 0 for layer in range(n_layer))
