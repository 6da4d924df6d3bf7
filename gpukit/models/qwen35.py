"""Qwen 3.5 and 3.6, dense, their text: import from `Qwen3_5ForCausalLM` and
`Qwen3_5ForConditionalGeneration` checkpoints, and the decoder.

Most layers are gated delta networks; every fourth has attention with a gate. The layer behind the
last one, which guesses a further token, is kept and not run. Facts: transformers'
Qwen3_5TextConfig (defaults), llama.cpp's converter, loader and graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, ValueType, array, u32
from gpukit.models.config import ModelConfig
from gpukit.models.delta_rules import (
    TAPS,
    delta_fields,
    delta_net_rules,
    with_delta,
    with_stored_delta,
)
from gpukit.models.gemma import shifted
from gpukit.models.registry import Architecture
from gpukit.models.rope import rotated_part
from gpukit.models.rules import Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes, restore_sizes, size_fields
from gpukit.models.style import Style
from gpukit.models.tables import (
    ATTENTION,
    FEED_FORWARD,
    QK_NORMS,
    Row,
    decoder_rules,
    layer_rules,
    text_name,
)
from gpukit.models.values import MOST_LAYERS, flag, natural, section
from gpukit.tokenizer import plain_vocabulary

NAME = "qwen35"
DEFAULTS = {
    "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
}  # fmt: skip
ROTATED_PART = 0.25
SECTIONS = (11, 11, 10)
# What queries and keys of delta networks are divided by has this epsilon in transformers, that of
# the norms in llama.cpp.
EPS = 1e-6

VISION = ("model.visual.", "visual.")
NORMS: tuple[Row, ...] = (
    ATTENTION[0],
    ("post_attention_layernorm.weight", "post_attention_norm.weight", ("embd",)),
)
GATED_ATTENTION: tuple[Row, ...] = (
    ("self_attn.q_proj.weight", "attn_q.weight", ("q_gate", "embd")),
    *ATTENTION[2:],
    *QK_NORMS,
)
MLP = FEED_FORWARD[1:]
NEXTN: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("fc.weight", "nextn.eh_proj.weight", ("embd", "twice")),
    ("pre_fc_norm_embedding.weight", "nextn.enorm.weight", ("embd",)),
    ("pre_fc_norm_hidden.weight", "nextn.hnorm.weight", ("embd",)),
    ("norm.weight", "nextn.shared_head_norm.weight", ("embd",)),
)
STYLE = Style(qk_norms=True, output_gate=True, second_norm="post_attention_norm", decoded=(TAPS,))


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the text in a config.json of transformers 5, with Qwen3_5TextConfig's
    defaults."""
    text = text_of(config)
    return with_hybrid(read_sizes(text, NAME, DEFAULTS), text)


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `config` says of the text; the whole model says whether that has a head of its own."""
    text = {**config, **section(config, "text_config")}
    if "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    return text


def with_hybrid(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model` with what makes a Qwen 3.5; `CheckpointError` for what its GGUF cannot hold."""
    arch = model.arch
    check_activation(config, arch, SILU)
    if model.attention_bias:
        raise CheckpointError(
            f"config.json: attention_bias is true; a {arch} GGUF has no biases of attention"
        )
    if not flag(config, "attn_output_gate", True):
        raise CheckpointError(
            f"config.json: attn_output_gate is false; attention of a {arch} GGUF has a gate"
        )
    if model.rms_eps != EPS:
        raise CheckpointError(
            f"config.json: rms_norm_eps is {model.rms_eps:g}; a {arch} GGUF has one epsilon for "
            f"norms and for the lengths of queries and keys, which is {EPS:g}"
        )
    model = replace(model, n_rot=rotated_part(config, model.head_dim, ROTATED_PART))
    nextn = natural(config, "mtp_num_hidden_layers", 0, most=MOST_LAYERS - model.n_layer)
    return _with_sections(replace(with_delta(model, config), n_nextn=nextn), config)


def _with_sections(model: ModelConfig, config: Mapping[str, Any]) -> ModelConfig:
    """`model` with the four sections of RoPE; `CheckpointError` where they leave pairs over, which
    llama.cpp would not turn."""
    rope = section(config, "rope_scaling") or section(config, "rope_parameters")
    said = rope.get("mrope_section") or list(SECTIONS)
    if not isinstance(said, list) or not all(type(n) is int and n >= 0 for n in said):
        raise CheckpointError(f"config.json: mrope_section is {said!r}; whole numbers are needed")
    pairs, found = model.n_rot // 2, (*said, 0, 0, 0, 0)[:4]
    if sum(found) < pairs or any(found[i % 3] <= i // 3 for i in range(pairs)):
        raise CheckpointError(
            f"config.json: mrope_section {said} does not reach all {pairs} pairs of a head that "
            f"RoPE turns; a {model.arch} GGUF would leave the others as they are"
        )
    return replace(model, rope_sections=found, rope_sections_said="mrope_section" in rope)


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape."""
    found = hybrid_rules(config, MLP)
    for number, layer in enumerate(config.unused_layers):
        rows = (*NORMS, *GATED_ATTENTION, *MLP)
        found += nextn_rules(config, number, layer_rules(config, layer, rows))
    return shifted_norms(found)


def hybrid_rules(config: ModelConfig, feed_forward: Sequence[Row]) -> list[Rule]:
    """All but the layers that guess; `feed_forward` are the rows of every layer's."""
    found = decoder_rules(config, (*NORMS, *feed_forward))
    for layer in range(config.n_layer):
        if config.is_recurrent(layer):
            found += delta_net_rules(config, layer)
        else:
            found += layer_rules(config, layer, GATED_ATTENTION)
    return found


def nextn_rules(config: ModelConfig, number: int, layer: Sequence[Rule]) -> list[Rule]:
    """A layer that guesses a further token, number `number` of them, whose own tensors `layer` are
    those of a layer behind the last; transformers leaves it out when it saves a model."""
    at = config.n_layer + number
    found = [_moved(rule, f"model.layers.{at}.", f"mtp.layers.{number}.") for rule in layer]
    if number == 0:
        ends = layer_rules(config, at, NEXTN)
        found += [_moved(rule, f"model.layers.{at}.", "mtp.") for rule in ends]
    return [replace(rule, required=False, beside="mtp.fc.weight") for rule in found]


def _moved(rule: Rule, old: str, new: str) -> Rule:
    """`rule` whose sources begin otherwise."""
    if isinstance(rule.source, str):
        return replace(rule, source=rule.source.replace(old, new, 1))
    spans = (s._replace(source=s.source.replace(old, new, 1)) for s in rule.source)
    return replace(rule, source=tuple(spans))


def shifted_norms(rules: Sequence[Rule]) -> list[Rule]:
    """`rules` with 1 added to all norms but those of delta networks."""
    return [rule if rule.name.endswith("ssm_norm.weight") else shifted([rule])[0] for rule in rules]


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return hybrid_fields(config, [])


def hybrid_fields(config: ModelConfig, more: Sequence[Field]) -> list[Field]:
    """The metadata of a hybrid model, with `more` behind the usual sizes."""
    at, found = config.arch, size_fields(config)
    sections = array(f"{at}.rope.dimension_sections", ValueType.INT32, config.rope_sections)
    if config.rope_sections_said:
        place = next(i for i, field in enumerate(found) if field.key == f"{at}.rope.freq_base")
        found.insert(place, sections)
    nextn = [u32(f"{at}.nextn_predict_layers", config.n_nextn)] if config.n_nextn else []
    rotated = u32(f"{at}.rope.dimension_count", config.n_rot)
    last = [] if config.rope_sections_said else [sections]
    return [*found, *more, *nextn, *delta_fields(config), rotated, *last]


def restore(found: Mapping[str, Field], name: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    return with_stored_delta(restore_sizes(found, name, partial=True), found)


def renamed(name: str) -> str:
    """The name of a tensor of the text as where there is nothing but text."""
    name = text_name(name)
    return name.removeprefix("model.") if name.startswith("model.mtp.") else name


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=plain_vocabulary,
        style=STYLE,
        restoring=restore,
        skipped_parts=VISION,
        renamed=renamed,
    ),
)
