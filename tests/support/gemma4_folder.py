"""What the tiny checkpoints of Gemma 4 have that others have not: tensors by layer, a tokenizer."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from support.vocabularies import texts

# As in the published vocabulary: the settings call all of them special, `SHOWN` are not hidden.
NAMED = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
MARKS = {
    "sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>",
    "eoc_token": "<channel|>", "stc_token": "<|tool_call>", "etc_token": "<tool_call|>",
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>", "escape_token": '<|"|>',
    "think_token": "<|think|>", "image_token": "<|image|>",
}  # fmt: skip
PLAIN = ("[multimodal]", "<unused0>", "</s>", "<b>")
TEMPLATE = "{% for m in messages %}<|turn>{{ m['role'] }}\n{{ m['content'] }}<turn|>\n{% endfor %}"


def layer_shapes(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer with their shapes, norms beside attention and feed forward aside."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    whole = config["layer_types"][layer] == "full_attention" or layer == layers - 1
    own = layers - config.get("num_kv_shared_layers", 0)
    saved = config.get("per_layer_config", {}).get(str(layer), {})
    head = config.get("global_head_dim") or saved.get("head_dim") if whole else config["head_dim"]
    kv = config["num_key_value_heads"]
    values = not (whole and config.get("attention_k_eq_v"))
    if not values:
        kv = config.get("num_global_key_value_heads") or saved.get("num_key_value_heads") or kv
    q, ff = head * config["num_attention_heads"], config["intermediate_size"]
    ff *= 2 if config.get("use_double_wide_mlp") and layer >= own else 1
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, hidden), "self_attn.o_proj.weight": (hidden, q),
        "self_attn.q_norm.weight": (head,), "layer_scalar": (1,),
        "mlp.gate_proj.weight": (ff, hidden), "mlp.up_proj.weight": (ff, hidden),
        "mlp.down_proj.weight": (hidden, ff),
    }  # fmt: skip
    # The published models have what shared layers do not use.
    if layer < own or config.get("global_head_dim"):
        shapes["self_attn.k_proj.weight"] = (head * kv, hidden)
        shapes["self_attn.k_norm.weight"] = (head,)
        if values:
            shapes["self_attn.v_proj.weight"] = (head * kv, hidden)
    if width := config.get("hidden_size_per_layer_input"):
        shapes["per_layer_input_gate.weight"] = (width, hidden)
        shapes["per_layer_projection.weight"] = (hidden, width)
        shapes["post_per_layer_input_norm.weight"] = (hidden,)
    if config.get("enable_moe_block"):
        count, inner = config["num_experts"], config["moe_intermediate_size"]
        shapes["router.proj.weight"], shapes["router.scale"] = (count, hidden), (hidden,)
        shapes["router.per_expert_scale"] = (count,)
        shapes["experts.gate_up_proj"] = (count, 2 * inner, hidden)
        shapes["experts.down_proj"] = (count, hidden, inner)
        for norm in ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1"):
            shapes[f"{norm}.weight"] = (hidden,)
        shapes["post_feedforward_layernorm_2.weight"] = (hidden,)
    return shapes


def outer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What is in no layer, beside the embedding and the last norm."""
    width = config.get("hidden_size_per_layer_input")
    if not width:
        return {}
    all_of = width * config["num_hidden_layers"]
    return {
        "model.embed_tokens_per_layer.weight": (config["vocab_size"], all_of),
        "model.per_layer_model_projection.weight": (all_of, config["hidden_size"]),
        "model.per_layer_projection_norm.weight": (width,),
    }


def write_tokenizer(folder: Path, size: int) -> None:
    """A BPE of `size` tokens over characters that falls back to bytes, as GemmaTokenizer's."""
    tokens, merges = _characters()
    specials = [*NAMED, *MARKS.values()]
    tokens = [*specials, *PLAIN, *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    merges = [pair for pair in merges if tokens.index("".join(pair)) < size]
    tokens = [*tokens, *(f"<unused{number}>" for number in range(1, size))][:size]
    added = [
        {"id": number, "content": text, "special": True, "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for number, text in enumerate(specials)
    ]  # fmt: skip
    library = {
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "},
                          "behavior": "MergedWithPrevious", "invert": False},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "ignore_merges": False, "vocab": {text: i for i, text in enumerate(tokens)},
                  "merges": [list(pair) for pair in merges]},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "GemmaTokenizer", "chat_template": TEMPLATE,
        **{f"{kind}_token": f"<{kind}>" for kind in ("pad", "eos", "bos", "unk", "mask")},
        "model_specific_special_tokens": MARKS, **MARKS,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(library), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@cache
def _characters() -> tuple[list[str], list[tuple[str, str]]]:
    """Characters and what neighbours of them make, and the merges, lines apart."""
    words = [text.replace(" ", "▁") for text in texts(60, "gemma4")]
    characters = sorted({c for word in words for c in word if c.isprintable()} | {"\n", "\t"})
    plain = [c for c in characters if ord(c) < 128 or c == "▁"]
    pairs = [(a, b) for a in plain for b in plain if a.isalnum() == b.isalnum()]
    merges = [("\n", "\n"), *[pair for pair in pairs if "\n" not in pair][::3]]
    return [*characters, *("".join(pair) for pair in merges)], merges
