"""gpt-oss (20b, 120b): import from `GptOssForCausalLM` checkpoints, and the decoder.

Experts are MXFP4 blocks, which are carried over bit for bit, or floats; a sink takes a share of
each head's attention; every other layer has a window. Facts: transformers' GptOssConfig (defaults)
and modeling_gpt_oss, llama.cpp's converter (names, order of writing) and graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpukit.errors import CheckpointError
from gpukit.formats.gguf_fields import Field, u32
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.config import ModelConfig
from gpukit.models.experts import DOWN, GATE, UP, with_experts
from gpukit.models.gemma2 import pattern_fields
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule
from gpukit.models.sizes import SILU, check_activation, read_sizes, restore_sizes, size_fields
from gpukit.models.style import Style
from gpukit.models.tables import ATTENTION, OUTPUT_BIAS, QKV_BIASES, Row, decoder_rules
from gpukit.models.values import flag, real, section, whole
from gpukit.models.views import PACKED, Columns, Packed, Values, View
from gpukit.models.windows import periodic, windowed_layers
from gpukit.tokenizer import plain_vocabulary

NAME = "gpt-oss"
DEFAULTS = {
    "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000.0,
}  # fmt: skip
ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
WINDOW, PERIOD = 128, 2
# What llama.cpp has as constants.
GATE_SETTINGS = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}

EXPERTS = "mlp.experts."
LAYER: tuple[Row, ...] = (
    *ATTENTION,
    *QKV_BIASES,
    *OUTPUT_BIAS,
    ("self_attn.sinks", "attn_sinks.weight", ("heads",)),
    ("post_attention_layernorm.weight", "post_attention_norm.weight", ("embd",)),
    ("mlp.router.weight", "ffn_gate_inp.weight", ("expert", "embd")),
    ("mlp.router.bias", "ffn_gate_inp.bias", ("expert",)),
    *(
        (f"{EXPERTS}{source}.{kind}", f"{name}.{kind}", ("expert", *shape))
        for source, name, rows, width in (
            ("down_proj", DOWN, "embd", "ff"),
            ("gate_proj", GATE, "ff", "embd"),
            ("up_proj", UP, "ff", "embd"),
        )
        for kind, shape in (("weight", (rows, width)), ("bias", (rows,)))
    ),
)
# The tensors of a checkpoint, and which of their outputs the matrices of a GGUF have: from the
# first on every so-manieth.
MATRICES = {
    "down_proj": {"down_proj": (0, 1)},
    "gate_up_proj": {"gate_proj": (0, 2), "up_proj": (1, 2)},
}
BLOCKS, SCALES, BIAS = "_blocks", "_scales", "_bias"
PLAIN = ("BF16", "F16", "F32", "F64")


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with GptOssConfig's defaults."""
    check_activation(config, NAME, SILU)
    for key, usual in GATE_SETTINGS.items():
        if (found := real(config, key, usual)) != usual:
            raise CheckpointError(
                f"config.json: {key} is {found}; a {NAME} GGUF is run with {usual}"
            )
    if not flag(config, "attention_bias", True):
        raise CheckpointError(f"config.json: attention_bias is false; a {NAME} GGUF has biases")
    if flag(config, "tie_word_embeddings"):
        raise CheckpointError(
            f"config.json: tie_word_embeddings is true; a {NAME} GGUF has a head of its own"
        )
    if "sliding_window" in config and config["sliding_window"] is None:
        raise CheckpointError(
            f"config.json: sliding_window is null; layers of a {NAME} GGUF have one"
        )
    if not section(config, "rope_scaling") and not section(config, "rope_parameters"):
        config = {**config, "rope_parameters": ROPE}
    model = read_sizes(config, NAME, DEFAULTS, rounded=False)
    model = with_experts(model, config, "num_local_experts", 128, 4)
    return replace(
        model,
        window=whole(config, "sliding_window", WINDOW),
        windowed=tuple(windowed_layers(config, model) or periodic(model.n_layer, PERIOD)),
    )


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint holds, its experts as `views` has them, with its shape."""
    return decoder_rules(config, LAYER)


def views(tensors: Sequence[StoredTensor]) -> list[View]:
    """The experts' matrices and biases as those of a GGUF; `CheckpointError` for what does not
    belong together."""
    known = {tensor.name: tensor for tensor in tensors}
    return [view for tensor in tensors for view in _views(tensor, known)]


def _views(tensor: StoredTensor, known: Mapping[str, StoredTensor]) -> Iterator[View]:
    stem, experts, part = tensor.name.rpartition(EXPERTS)
    for name, matrices in MATRICES.items():
        end = part.removeprefix(name)
        if not experts or part not in (name, name + BLOCKS, name + SCALES, name + BIAS):
            continue
        for matrix, places in matrices.items():
            yield from _view(tensor, end, f"{stem}{EXPERTS}{matrix}", places, known)


def _view(
    tensor: StoredTensor,
    end: str,
    name: str,
    places: tuple[int, int],
    known: Mapping[str, StoredTensor],
) -> Iterator[View]:
    step, shape = places[1], tensor.shape
    if end in (BLOCKS, SCALES):
        blocks, scales = _pair(tensor, end, known, step)
        if end == SCALES:
            count, rows, groups = scales.shape
            fill = Packed(blocks, scales, *places)
            shape = (count, rows // step, groups * 32)
            yield View.of(f"{name}.weight", PACKED, shape, (blocks, scales), fill)
        return
    dimensions = 2 if end == BIAS else 3
    if tensor.dtype not in PLAIN:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} is {tensor.dtype}; experts of {NAME} can be imported in "
            f"{PACKED}, {', '.join(PLAIN)}"
        )
    if len(shape) != dimensions or shape[-1] % step:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} has shape {list(shape)}; {dimensions} dimensions are "
            f"needed, the last a multiple of {step}"
        )
    outputs = shape[-1] // step
    if end == BIAS:
        of = View.of(
            f"{name}.bias", tensor.dtype, (shape[0], outputs), (tensor,), Values(tensor, *places)
        )
    else:
        turned = (shape[0], outputs, shape[1])
        of = View.of(f"{name}.weight", tensor.dtype, turned, (tensor,), Columns(tensor, *places))
    yield of


def _pair(
    tensor: StoredTensor, end: str, known: Mapping[str, StoredTensor], step: int
) -> tuple[StoredTensor, StoredTensor]:
    """The blocks and the scales of a matrix of which `tensor` is one."""
    stem = tensor.name.removesuffix(end)
    other = stem + (SCALES if end == BLOCKS else BLOCKS)
    if other not in known:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} without {other}; fetch the folder again"
        )
    blocks, scales = known[stem + BLOCKS], known[stem + SCALES]
    for part in (blocks, scales):
        if part.dtype != "U8":
            raise CheckpointError(f"{part.path}: {part.name} is {part.dtype}; U8 is needed")
    if blocks.shape != (*scales.shape, 16) or len(scales.shape) != 3 or scales.shape[1] % step:
        raise CheckpointError(
            f"{blocks.path}: {blocks.name} has shape {list(blocks.shape)}, {scales.name} "
            f"{list(scales.shape)}; 16 bytes for each scale of experts, rows and blocks are needed"
        )
    return blocks, scales


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order; then what differs from what the loader
    takes for granted."""
    return [
        *size_fields(config),
        u32(f"{NAME}.attention.sliding_window", config.window),
        u32(f"{NAME}.expert_feed_forward_length", config.expert_ff),
        *pattern_fields(config, PERIOD),
    ]


def restore(found: Mapping[str, Field], arch: str) -> ModelConfig:
    """The configuration that a GGUF's metadata describes."""
    config = restore_sizes(found, arch)
    windowed = config.windowed or periodic(config.n_layer, PERIOD)
    return replace(config, windowed=windowed, rope_rounded=False)


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("GptOssForCausalLM",),
        read=read,
        rules=rules,
        fields=fields,
        vocabulary=plain_vocabulary,
        style=Style(sinks=True, activation="swiglu_oai", second_norm="post_attention_norm"),
        restoring=restore,
        views=views,
    ),
)
