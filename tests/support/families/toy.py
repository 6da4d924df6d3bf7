"""Two made-up families, as a file of gpukit/models would hold them: a Llama whose checkpoint has
queries, keys and values in one tensor, and a Phi-3 whose checkpoint has them apart.
"""

from functools import partial

from gpukit.models import llama, phi3
from gpukit.models.config import ModelConfig
from gpukit.models.registry import Architecture
from gpukit.models.rules import Rule, Span
from gpukit.models.tables import (
    ATTENTION,
    FEED_FORWARD,
    FEED_FORWARD_NORM,
    FUSED,
    decoder_rules,
    sizes,
)
from gpukit.tokenizer import phi3_vocabulary, vocabulary_fields


def split_rules(config: ModelConfig) -> list[Rule]:
    """Three tensors of one, twice: matrices and biases; queries and keys are permuted."""
    found = decoder_rules(config, (ATTENTION[0], ATTENTION[4], *FEED_FORWARD))
    size, head = sizes(config), config.head_dim
    change = partial(llama.to_pairs, head_dim=head)
    for layer in range(config.n_layer):
        for kind, width in (("weight", (config.n_embd,)), ("bias", ())):
            first, whole = 0, (size["qkv"], *width)
            for name, rows in (("q", size["q"]), ("k", size["kv"]), ("v", size["kv"])):
                source = f"model.layers.{layer}.self_attn.qkv.{kind}"
                span = Span(source, whole, first, rows, None if name == "v" else change)
                group = head if width and name != "v" else 1
                to = f"blk.{layer}.attn_{name}.{kind}"
                found.append(Rule((span,), to, (rows, *width), row_group=group))
                first += rows
    return found


def joined_rules(config: ModelConfig) -> list[Rule]:
    """One tensor of three; the feed forward's two come from where Phi-3 has one."""
    found = decoder_rules(config, (ATTENTION[0], ATTENTION[4], FEED_FORWARD_NORM, *FUSED[4:]))
    size, embd = sizes(config), config.n_embd
    for layer in range(config.n_layer):
        at = f"model.layers.{layer}.self_attn"
        parts = (("q", size["q"]), ("k", size["kv"]), ("v", size["kv"]))
        spans = tuple(Span.whole(f"{at}.{name}_proj.weight", (n, embd)) for name, n in parts)
        found.append(Rule(spans, f"blk.{layer}.attn_qkv.weight", (size["qkv"], embd)))
    return found


ARCHITECTURES = (
    Architecture(
        name=llama.NAME,
        classes=("SplitForCausalLM",),
        read=llama.read,
        rules=split_rules,
        fields=llama.fields,
        vocabulary=vocabulary_fields,
        style=llama.STYLE,
    ),
    Architecture(
        name=phi3.NAME,
        classes=("JoinedForCausalLM",),
        read=phi3.read,
        rules=joined_rules,
        fields=phi3.fields,
        vocabulary=phi3_vocabulary,
        computed=phi3.computed,
    ),
)
