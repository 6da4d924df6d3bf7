"""Writes the checkpoints of tests/support/zoo.py: weights, config.json, vocabulary."""

import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from support import gemma4_folder
from support.checkpoints import save_shards
from support.vocabularies import letters, merges
from support.zoo import ZOO, Animal

VOCABULARY = Path(__file__).resolve().parents[1] / "data" / "tiny-shakespeare" / "tokenizer.model"
DTYPES = {
    "BF16": torch.bfloat16, "F8": torch.bfloat16, "MXFP4": torch.bfloat16, "F16": torch.float16,
    "F32": torch.float32,
}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


def build(name: str, root: Path, *, known: bool = False) -> Path:
    """Write checkpoint `name` into `root / name`; that folder. With `known` as a checkpoint of the
    class that llama.cpp's converter knows its text by."""
    animal, folder = ZOO[name], root / name
    config = {**animal.config, **(animal.known if known else {})}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file, content in animal.files.items():
        (folder / file).write_text(json.dumps(content))
    if animal.is_gemma4:
        gemma4_folder.write_tokenizer(folder, animal.text["vocab_size"])
    elif animal.pre is None:
        shutil.copyfile(VOCABULARY, folder / "tokenizer.model")
    else:
        _write_bpe(folder, animal.specials)
    for file, content in animal.files.items():
        (folder / file).write_text(json.dumps(content))
    found = tensors(name, known=known)
    if animal.shards > 1:
        save_shards(folder, found, animal.shards)
    else:
        save_file(found, folder / "model.safetensors", {"format": "pt"})
    return folder


def _write_bpe(folder: Path, specials: Sequence[str]) -> None:
    """A byte-level BPE of 756 tokens, and `specials`, of which the last ends a text."""
    pairs = merges()[:500]
    tokens = [*letters(), *(a + b for a, b in pairs)]
    added = [
        {"id": len(tokens) + i, "content": text, "special": True, "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for i, text in enumerate(specials)
    ]  # fmt: skip
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    library = {
        "version": "1.0", "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(tokens)},
                  "merges": [list(pair) for pair in pairs]},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[-1],
        "add_bos_token": False, "chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(library), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tensors(name: str, *, known: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of checkpoint `name`; `known` as for `build`."""
    animal, source = ZOO[name], random.Random(name)
    found = {
        key: _values(source, animal, key, shape).to(DTYPES[animal.dtype])
        for key, shape in _shapes(animal).items()
    }
    if animal.dtype == "F8":
        found = _eight_bits(found, animal.config["quantization_config"]["weight_block_size"])
    if animal.dtype == "MXFP4":
        found = _packed(found, source)
    if animal.head:
        found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
    if known and animal.known:
        return found
    found = {_with_prefix(key, animal.prefix): values for key, values in found.items()}
    found = _with_loras(found, animal.loras) if animal.loras else found
    return {**found, **{key: torch.ones(32) for key in animal.beside}}


def _with_loras(found: dict[str, torch.Tensor], loras: Sequence[str]) -> dict[str, torch.Tensor]:
    """`found` with matrices of `loras` beside those of layers."""
    changed = {}
    for key, values in found.items():
        if values.ndim < 2 or ".layers." not in key:
            changed[key] = values
            continue
        at = key.removesuffix("weight")
        changed[f"{at}base_layer.weight"] = values
        for lora in loras:
            changed[f"{at}lora_A.{lora}.weight"] = torch.ones(2, values.shape[1])
            changed[f"{at}lora_B.{lora}.weight"] = torch.ones(values.shape[0], 2)
    return changed


def _with_prefix(key: str, prefix: str) -> str:
    """The name of a tensor of the text as transformers 4 has it, or 5 (`model.…`)."""
    if not prefix.startswith("model."):
        return prefix + key
    return key.replace("model.", prefix, 1) if key.startswith("model.") else key


def _values(
    source: random.Random, animal: Animal, key: str, shape: tuple[int, ...]
) -> torch.Tensor:
    """float32 sums of three uniform numbers, of deviation 1 before they are scaled."""
    count = int(np.prod(shape))
    raw = np.frombuffer(source.randbytes(6 * count), "<i2").astype(np.float32).reshape(3, count)
    values = torch.from_numpy(raw.sum(0) / np.float32(32768)).view(shape)
    if ("norm" in key and key.endswith(".weight")) or (animal.is_gemma4 and len(shape) == 1):
        # Gemma 4 has no other scale of scores, and divides what its router sees.
        usual = 0.4 if animal.is_gemma4 and "_norm.weight" in key and "self_attn" in key else 1
        usual = 10 if key.endswith("router.scale") else usual
        near = animal.shifted and "linear_attn" not in key
        return usual * ((0 if near else 1) + 0.2 * values)
    if key.endswith("A_log"):
        return values - 2
    if len(shape) == 1 or key.endswith("_bias"):
        return 0.3 * values
    if "embed_tokens" in key or "lm_head" in key:
        # Gemmas scale embeddings up again; larger ones would drown what the layers add.
        return (0.7 if "gemma" in animal.family else 2) * values * shape[1] ** -0.5
    lively = 2.0 if any(part in key for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
    if key.endswith("experts.gate_up_proj"):
        lively = 4.0  # some gates are past their limit
    return lively * values * shape[1] ** -0.5


def _eight_bits(found: dict[str, torch.Tensor], block: list[int] | None) -> dict[str, torch.Tensor]:
    """`found` with the matrices of layers, routers aside, in 8-bit floats, a scale a block; without
    blocks one for all, and another for activations."""
    changed = dict(found)
    for key, values in found.items():
        if ".layers." not in key or values.ndim < 2 or "moe.gate." in key:
            continue
        if block is None:
            # A few bits, so that every product is a bfloat16.
            scale = 1.5 * 2 ** torch.ceil(torch.log2(values.float().abs().max() / 448))
            changed[key] = (values.float() / scale).to(torch.float8_e4m3fn)
            changed[f"{key}_scale_inv"] = scale.to(torch.bfloat16)
            changed[f"{key.removesuffix('weight')}activation_scale"] = torch.tensor(0.5)
            continue
        rows, columns = (-(-size // part) for size, part in zip(values.shape, block, strict=True))
        scales = torch.linspace(0.5, 2, rows * columns).view(rows, columns) / 128
        each = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        each = each[: values.shape[0], : values.shape[1]]
        changed[key] = (values.float() / each).clamp(-448, 448).to(torch.float8_e4m3fn)
        changed[f"{key}_scale_inv"] = scales
    return changed


def _packed(found: dict[str, torch.Tensor], source: random.Random) -> dict[str, torch.Tensor]:
    """`found` with the matrices of experts in any MXFP4 blocks, as large as they were."""
    changed: dict[str, torch.Tensor] = {}
    for key, values in found.items():
        if ".experts." not in key or key.endswith("_bias"):
            changed[key] = values
            continue
        experts, width, rows = values.shape
        shape = (experts, rows, width // 32)
        exponent = 127 + math.floor(math.log2(float(values.abs().max()) / 6))

        def raw(*shape: int) -> torch.Tensor:
            count = int(np.prod(shape))
            return torch.frombuffer(bytearray(source.randbytes(count)), dtype=torch.uint8).view(
                shape
            )

        changed[f"{key}_blocks"] = raw(*shape, 16)
        # One exponent in 64 is one of the smallest.
        any_byte = raw(*shape)
        scales = torch.where(any_byte < 4, any_byte, exponent + (any_byte & 1))
        changed[f"{key}_scales"] = scales.to(torch.uint8)
    return changed


def _shapes(animal: Animal) -> Shapes:
    config = animal.text
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        **(gemma4_folder.outer_shapes(config) if animal.is_gemma4 else {}),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    layers = config["num_hidden_layers"]
    for layer in range(layers):
        for key, shape in _layer(animal, layer).items():
            shapes[f"model.layers.{layer}.{key}"] = shape
    for layer in range(layers, layers + animal.nextn * config.get("num_nextn_predict_layers", 0)):
        for key, shape in {**_layer(animal, layer), **_nextn(hidden, vocabulary)}.items():
            shapes[f"model.layers.{layer}.{key}"] = shape
    if "qwen3_5" in animal.family:
        shapes |= _mtp(animal)
    return shapes


def _mtp(animal: Animal) -> Shapes:
    """The layers of a Qwen 3.5 that guess further tokens."""
    config = animal.text
    hidden, count = config["hidden_size"], animal.nextn * config.get("mtp_num_hidden_layers", 0)
    if not count:
        return {}
    shapes: Shapes = {
        "mtp.fc.weight": (hidden, 2 * hidden), "mtp.norm.weight": (hidden,),
        "mtp.pre_fc_norm_embedding.weight": (hidden,), "mtp.pre_fc_norm_hidden.weight": (hidden,),
    }  # fmt: skip
    for layer in range(count):
        for key, shape in _layer(animal, config["num_hidden_layers"] + layer).items():
            shapes[f"mtp.layers.{layer}.{key}"] = shape
    return shapes


def _is_recurrent(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer of a Qwen 3.5 is a gated delta network."""
    if layer >= config["num_hidden_layers"]:
        return False
    if "layer_types" in config:
        return bool(config["layer_types"][layer] == "linear_attention")
    return bool((layer + 1) % config["full_attention_interval"])


def _delta_net(config: Mapping[str, Any]) -> Shapes:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    channels = 2 * keys + values
    shapes = {
        "in_proj_qkv.weight": (channels, hidden), "in_proj_z.weight": (values, hidden),
        "in_proj_b.weight": (heads, hidden), "in_proj_a.weight": (heads, hidden),
        "conv1d.weight": (channels, 1, config["linear_conv_kernel_dim"]), "A_log": (heads,),
        "dt_bias": (heads,), "norm.weight": (config["linear_value_head_dim"],),
        "out_proj.weight": (hidden, values),
    }  # fmt: skip
    return {f"linear_attn.{key}": shape for key, shape in shapes.items()}


def _gated_experts(config: Mapping[str, Any], *, stacked: bool) -> Shapes:
    """Experts of a Qwen 3.5, and the one that is shared."""
    hidden, count, ff = (
        config[key] for key in ("hidden_size", "num_experts", "moe_intermediate_size")
    )
    found: Shapes = {
        "mlp.gate.weight": (count, hidden), "mlp.shared_expert_gate.weight": (1, hidden),
    }  # fmt: skip
    if stacked:
        found["mlp.experts.gate_up_proj"] = (count, 2 * ff, hidden)
        found["mlp.experts.down_proj"] = (count, hidden, ff)
    apart = [] if stacked else [(f"experts.{number}", ff) for number in range(count)]
    for at, width in [*apart, ("shared_expert", config["shared_expert_intermediate_size"])]:
        found[f"mlp.{at}.gate_proj.weight"] = found[f"mlp.{at}.up_proj.weight"] = (width, hidden)
        found[f"mlp.{at}.down_proj.weight"] = (hidden, width)
    return found


def _nextn(hidden: int, vocabulary: int) -> Shapes:
    """What a layer that guesses a further token has beside those of others."""
    return {
        "embed_tokens.weight": (vocabulary, hidden), "eh_proj.weight": (hidden, 2 * hidden),
        "enorm.weight": (hidden,), "hnorm.weight": (hidden,),
        "shared_head.head.weight": (vocabulary, hidden), "shared_head.norm.weight": (hidden,),
    }  # fmt: skip


def _layer(animal: Animal, layer: int) -> Shapes:
    config, family = animal.text, animal.family
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or HEAD_DIMS.get(family) or hidden // heads
    q, kv = head * heads, head * config["num_key_value_heads"]
    ff = config.get("intermediate_size", 0)
    linear = {
        "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ff, hidden), "mlp.up_proj": (ff, hidden), "mlp.down_proj": (hidden, ff),
    }  # fmt: skip
    shapes: Shapes = {f"{key}.weight": shape for key, shape in linear.items()}
    for key, (rows, _) in linear.items():
        if key.partition(".")[2] in animal.biases:
            shapes[f"{key}.bias"] = (rows,)
    if "qwen3_5" in family:
        shapes["self_attn.q_proj.weight"] = (2 * q, hidden)
        if _is_recurrent(config, layer):
            mlp = {key: shape for key, shape in shapes.items() if key.startswith("mlp.")}
            shapes = {**mlp, **_delta_net(config)}
    if family == "mixtral":
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("mlp.")}
        shapes["block_sparse_moe.gate.weight"] = (config["num_local_experts"], hidden)
        for expert in range(config["num_local_experts"]):
            at = f"block_sparse_moe.experts.{expert}"
            shapes[f"{at}.w1.weight"] = shapes[f"{at}.w3.weight"] = (ff, hidden)
            shapes[f"{at}.w2.weight"] = (hidden, ff)
    if family == "qwen3_moe":
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("mlp.")}
        shapes["mlp.gate.weight"] = (config["num_experts"], hidden)
        ff = config["moe_intermediate_size"]
        for expert in range(config["num_experts"]):
            at = f"mlp.experts.{expert}"
            shapes[f"{at}.gate_proj.weight"] = shapes[f"{at}.up_proj.weight"] = (ff, hidden)
            shapes[f"{at}.down_proj.weight"] = (hidden, ff)
    if family == "qwen3_5_moe_text":
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("mlp.")}
        shapes |= _gated_experts(config, stacked=animal.stacked)
    if family == "glm4_moe" and layer >= config["first_k_dense_replace"]:
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("mlp.")}
        count, ff = config["n_routed_experts"], config["moe_intermediate_size"]
        shapes["mlp.gate.weight"] = (count, hidden)
        shapes["mlp.gate.e_score_correction_bias"] = (count,)
        wide = ff * config["n_shared_experts"]
        both = [(f"experts.{i}", ff) for i in range(count)] + [("shared_experts", wide)]
        for at, width in both:
            shapes[f"mlp.{at}.gate_proj.weight"] = shapes[f"mlp.{at}.up_proj.weight"] = (
                width,
                hidden,
            )
            shapes[f"mlp.{at}.down_proj.weight"] = (hidden, width)
    if family == "gpt_oss":
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("mlp.")}
        count = config["num_local_experts"]
        shapes["self_attn.sinks"] = (heads,)
        shapes["mlp.router.weight"], shapes["mlp.router.bias"] = (count, hidden), (count,)
        shapes["mlp.experts.gate_up_proj"] = (count, hidden, 2 * ff)
        shapes["mlp.experts.gate_up_proj_bias"] = (count, 2 * ff)
        shapes["mlp.experts.down_proj"] = (count, ff, hidden)
        shapes["mlp.experts.down_proj_bias"] = (count, hidden)
    if animal.is_gemma4:
        shapes = gemma4_folder.layer_shapes(config, layer)
    if family.startswith("phi"):
        shapes = {
            "self_attn.qkv_proj.weight": (q + 2 * kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "mlp.gate_up_proj.weight": (2 * ff, hidden), "mlp.down_proj.weight": (hidden, ff),
        }  # fmt: skip
    shapes["input_layernorm.weight"] = shapes["post_attention_layernorm.weight"] = (hidden,)
    if family in ("olmo2", "olmo3"):
        del shapes["input_layernorm.weight"]
        shapes["post_feedforward_layernorm.weight"] = (hidden,)
        shapes["self_attn.q_norm.weight"], shapes["self_attn.k_norm.weight"] = (q,), (kv,)
    if family in POST_NORMS or animal.is_gemma4:
        shapes["pre_feedforward_layernorm.weight"] = (hidden,)
        shapes["post_feedforward_layernorm.weight"] = (hidden,)
    qk_norms = family in QK_NORMS or config.get("use_qk_norm")
    if qk_norms and "self_attn.q_proj.weight" in shapes:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (head,)
    return shapes


QK_NORMS = ("qwen3", "qwen3_moe", "qwen3_5_text", "qwen3_5_moe_text", "gemma3_text")
POST_NORMS = ("gemma2", "gemma3_text")
# Where config.json does not say, and it is not hidden/heads.
HEAD_DIMS = {"qwen3": 128, "ministral3": 128}
