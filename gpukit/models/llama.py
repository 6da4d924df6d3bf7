"""Llama 2, 3, 3.1 and 3.2: import from `LlamaForCausalLM` checkpoints, and the decoder.

Facts: transformers' LlamaConfig (defaults), llama.cpp's converter (names, permutation, rope_freqs).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from gpukit.errors import CheckpointError, GGUFError
from gpukit.formats.gguf_fields import Field, f32, u32
from gpukit.models.base import FILE_TYPE, Architecture, ModelConfig, PlannedTensor, Rule
from gpukit.models.decoder import Block, Decoder
from gpukit.models.layers import Attention, GatedFeedForward, RMSNorm, Rope
from gpukit.models.rope import rope_divisors, rope_fields, with_rope
from gpukit.models.values import count, flag, real, stored, whole
from gpukit.models.weights import Linear, Weights

NAME = "llama"

# What a layer holds: checkpoint name, GGUF name, shape as names of sizes (outermost first).
LAYER = (
    ("input_layernorm.weight", "attn_norm.weight", ("embd",)),
    ("self_attn.q_proj.weight", "attn_q.weight", ("q", "embd")),
    ("self_attn.k_proj.weight", "attn_k.weight", ("kv", "embd")),
    ("self_attn.v_proj.weight", "attn_v.weight", ("kv", "embd")),
    ("self_attn.o_proj.weight", "attn_output.weight", ("embd", "q")),
    ("post_attention_layernorm.weight", "ffn_norm.weight", ("embd",)),
    ("mlp.gate_proj.weight", "ffn_gate.weight", ("ff", "embd")),
    ("mlp.up_proj.weight", "ffn_up.weight", ("ff", "embd")),
    ("mlp.down_proj.weight", "ffn_down.weight", ("embd", "ff")),
)
# Biases: always there with attention_bias and mlp_bias, used without them too where there are some.
BIASES = (
    ("self_attn.q_proj.bias", "attn_q.bias", ("q",)),
    ("self_attn.k_proj.bias", "attn_k.bias", ("kv",)),
    ("self_attn.v_proj.bias", "attn_v.bias", ("kv",)),
    ("self_attn.o_proj.bias", "attn_output.bias", ("embd",)),
    ("mlp.gate_proj.bias", "ffn_gate.bias", ("ff",)),
    ("mlp.up_proj.bias", "ffn_up.bias", ("ff",)),
    ("mlp.down_proj.bias", "ffn_down.bias", ("embd",)),
)
# Rotated tensors: Hugging Face rotates halves of a head, GGUF neighbouring pairs.
ROTATED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")

# What a config.json says beyond sizes that GGUF cannot say of this architecture.
ACTIVATIONS = ("silu", "swish")


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of transformers 4 or 5, with LlamaConfig's defaults."""
    _refuse_others(config)
    n_embd, n_head = whole(config, "hidden_size", 4096), whole(config, "num_attention_heads", 32)
    n_head_kv = whole(config, "num_key_value_heads", n_head)
    head_dim = whole(config, "head_dim", max(n_embd // n_head, 1))
    if config.get("head_dim") is None and n_embd % n_head:
        raise CheckpointError(f"config.json: hidden_size {n_embd} is no multiple of {n_head} heads")
    if n_head % n_head_kv:
        raise CheckpointError(
            f"config.json: {n_head} heads are no multiple of {n_head_kv} key-value heads"
        )
    if head_dim % 2:
        raise CheckpointError(f"config.json: head_dim {head_dim} is odd; RoPE rotates pairs")
    model = ModelConfig(
        arch=NAME,
        n_layer=whole(config, "num_hidden_layers", 32),
        n_ctx=whole(config, "max_position_embeddings", 2048),
        n_embd=n_embd,
        n_ff=whole(config, "intermediate_size", 11008),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        rms_eps=real(config, "rms_norm_eps", 1e-6),
        rope_theta=10000.0,
        vocab_size=whole(config, "vocab_size", 32000),
        tied=flag(config, "tie_word_embeddings"),
        attention_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )
    return with_rope(model, config)


def _refuse_others(config: Mapping[str, Any]) -> None:
    """`CheckpointError` for what would run as another model."""
    activation = config.get("hidden_act")
    if activation is not None and activation not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: hidden_act is {activation!r}; a llama GGUF is run with silu"
        )
    if config.get("is_causal") is False:
        raise CheckpointError("config.json: is_causal is false; only causal attention can be run")


def rules(config: ModelConfig) -> list[Rule]:
    """Every tensor that a checkpoint may hold, with its shape."""
    sizes = {
        "embd": config.n_embd,
        "q": config.n_head * config.head_dim,
        "kv": config.n_head_kv * config.head_dim,
        "ff": config.n_ff,
    }
    vocabulary = (config.vocab_size, config.n_embd)
    found = [
        Rule("model.embed_tokens.weight", "token_embd.weight", vocabulary),
        Rule("model.norm.weight", "output_norm.weight", (config.n_embd,)),
        Rule("lm_head.weight", "output.weight", vocabulary, required=not config.tied),
    ]
    for layer in range(config.n_layer):
        for table in (LAYER, BIASES):
            for source, name, shape in table:
                rotated = name in ROTATED
                biased = config.mlp_bias if source.startswith("mlp") else config.attention_bias
                found.append(
                    Rule(
                        f"model.layers.{layer}.{source}",
                        f"blk.{layer}.{name}",
                        tuple(sizes[size] for size in shape),
                        table is LAYER or biased,
                        config.head_dim if rotated and len(shape) == 2 else 1,
                        partial(to_pairs, head_dim=config.head_dim) if rotated else None,
                    )
                )
    return found


def to_pairs(slab: Tensor, head_dim: int) -> Tensor:
    """Rows of whole heads, from halves (x, x + d/2) to neighbouring pairs (2x, 2x + 1).

    `[k * head_dim, n]`, or a bias: one row that holds all heads. The result has the same shape.
    """
    width = slab.shape[1] if slab.shape[0] > 1 else 1
    heads = slab.view(-1, 2, head_dim // 2, width)
    return heads.transpose(1, 2).reshape(slab.shape)


def fields(config: ModelConfig) -> list[Field]:
    """The architecture's metadata, in the converter's order."""
    return [
        u32(f"{NAME}.block_count", config.n_layer),
        u32(f"{NAME}.context_length", config.n_ctx),
        u32(f"{NAME}.embedding_length", config.n_embd),
        u32(f"{NAME}.feed_forward_length", config.n_ff),
        u32(f"{NAME}.attention.head_count", config.n_head),
        u32(f"{NAME}.attention.head_count_kv", config.n_head_kv),
        *rope_fields(config),
        f32(f"{NAME}.attention.layer_norm_rms_epsilon", config.rms_eps),
        u32(f"{NAME}.attention.key_length", config.head_dim),
        u32(f"{NAME}.attention.value_length", config.head_dim),
        u32(FILE_TYPE, 0),
        u32(f"{NAME}.vocab_size", config.vocab_size),
        u32(f"{NAME}.rope.dimension_count", config.head_dim),
    ]


def computed(config: ModelConfig) -> Sequence[PlannedTensor]:
    """rope_freqs.weight for Llama 3.1 and later: what each frequency is divided by."""
    if config.rope_scaling != "llama3":
        return ()
    factors = rope_divisors(config)
    return (PlannedTensor("rope_freqs.weight", (len(factors),), (), "F32", values=factors),)


def restore(found: Mapping[str, Field]) -> ModelConfig:
    """The configuration that a GGUF's metadata describes; `GGUFError` for what is missing, makes no
    sense, or cannot be run."""
    n_embd = count(found, f"{NAME}.embedding_length")
    n_head = count(found, f"{NAME}.attention.head_count")
    kind = found.get(f"{NAME}.rope.scaling.type")
    tokens = found.get("tokenizer.ggml.tokens")
    config = ModelConfig(
        arch=NAME,
        n_layer=count(found, f"{NAME}.block_count"),
        n_ctx=count(found, f"{NAME}.context_length"),
        n_embd=n_embd,
        n_ff=count(found, f"{NAME}.feed_forward_length"),
        n_head=n_head,
        n_head_kv=count(found, f"{NAME}.attention.head_count_kv", n_head),
        head_dim=count(found, f"{NAME}.attention.key_length", max(n_embd // n_head, 1)),
        rms_eps=stored(found, f"{NAME}.attention.layer_norm_rms_epsilon"),
        rope_theta=stored(found, f"{NAME}.rope.freq_base", 10000.0),
        vocab_size=count(found, f"{NAME}.vocab_size", len(tokens.value) if tokens else None),
        rope_scaling=str(kind.value) if kind else "none",
        rope_factor=stored(found, f"{NAME}.rope.scaling.factor", 1.0),
    )
    _check_runnable(config, found)
    return config


def _check_runnable(config: ModelConfig, found: Mapping[str, Field]) -> None:
    if config.rope_scaling not in ("none", "linear"):
        raise GGUFError(
            f"{NAME}.rope.scaling.type is {config.rope_scaling!r}; none and linear can be run"
        )
    if config.n_head % config.n_head_kv:
        raise GGUFError(
            f"{config.n_head} attention heads are no multiple of {config.n_head_kv} key-value heads"
        )
    if config.head_dim % 2:
        raise GGUFError(f"{NAME}.attention.key_length is {config.head_dim}; RoPE rotates pairs")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := count(found, f"{NAME}.{key}", config.head_dim)) != config.head_dim:
            raise GGUFError(f"{NAME}.{key} is {size}, the keys have {config.head_dim}")
    experts = found.get(f"{NAME}.expert_count")
    if experts is not None and experts.value != 0:
        raise GGUFError(f"{NAME}.expert_count is {experts.value}; experts cannot be run yet")


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """The decoder that runs; `GGUFError` for weights that are missing or of another shape."""
    vocab, n_embd = config.vocab_size, config.n_embd
    embedding = weights.matrix("token_embd.weight", vocab, n_embd)
    tied = "output.weight" not in weights
    output = Linear(embedding) if tied else weights.linear("output", vocab, n_embd)
    norm = RMSNorm(weights.vector("output_norm.weight", n_embd), config.rms_eps)
    divisors = None
    if "rope_freqs.weight" in weights:
        divisors = weights.vector("rope_freqs.weight", config.head_dim // 2)
    device = embedding.blocks.device
    factor = config.rope_factor if config.rope_scaling == "linear" else 1.0
    return Decoder(
        config=config,
        device=device,
        embed=embedding.rows,
        rope=Rope(config.head_dim, config.rope_theta, device, factor=factor, divisors=divisors),
        blocks=[_block(layer, config, weights) for layer in range(config.n_layer)],
        head=lambda x: output(norm(x)),
    )


def _block(layer: int, config: ModelConfig, weights: Weights) -> Block:
    at, embd, ff = f"blk.{layer}", config.n_embd, config.n_ff
    q, kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    attention = Attention(
        layer=layer,
        q=weights.linear(f"{at}.attn_q", q, embd),
        k=weights.linear(f"{at}.attn_k", kv, embd),
        v=weights.linear(f"{at}.attn_v", kv, embd),
        o=weights.linear(f"{at}.attn_output", embd, q),
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5,
    )
    feed_forward = GatedFeedForward(
        gate=weights.linear(f"{at}.ffn_gate", ff, embd),
        up=weights.linear(f"{at}.ffn_up", ff, embd),
        down=weights.linear(f"{at}.ffn_down", embd, ff),
    )
    attention_norm = RMSNorm(weights.vector(f"{at}.attn_norm.weight", embd), config.rms_eps)
    feed_forward_norm = RMSNorm(weights.vector(f"{at}.ffn_norm.weight", embd), config.rms_eps)
    return Block(attention_norm, attention, feed_forward_norm, feed_forward)


ARCHITECTURES = (
    Architecture(
        name=NAME,
        classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
        read=read,
        rules=rules,
        fields=fields,
        computed=computed,
        restore=restore,
        build=build,
        skipped=(".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias"),
    ),
)
