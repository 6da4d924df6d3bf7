"""Tiny Llama checkpoints in every form that folders come in: config.json of two transformers
generations, RoPE kinds, model cards, folder names, dtypes. What a converter makes of their tensors'
values is seen with tests/support/checkpoints.py; here the shapes are as small as they can be.
"""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCABULARY = Path(__file__).resolve().parents[1] / "data" / "tiny-shakespeare" / "tokenizer.model"

# The least that transformers 5 writes; a form's None takes a key away.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Form:
    """`config` goes over CONFIG; `files` are written as they are (objects as JSON).

    `dtypes` gives tensors that end so another dtype than BF16; `biases` are the linear maps with
    one; `added` are more tensors; `scales` stand beside the linear maps: the end of their names and
    their shape as blocks of rows and columns, or as it is. `types` are the converter's outtypes
    that are compared.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "model"
    files: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    scales: tuple[tuple[str, Any], ...] = ()
    weights: str = "model.safetensors"
    types: tuple[str, ...] = ("auto",)


EVERY_TYPE = ("auto", "f32", "f16", "bf16", "q8_0")


def _card(front: str) -> dict[str, str]:
    return {"README.md": f"---\n{front}---\n# Title\n"}


def _tokens(
    post: Mapping[str, Any] | None = None, more: Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """tokenizer.json, of which special tokens and flags are read, and tokenizer_config.json."""
    texts = ("<unk>", "<s>", "</s>", "<|end|>")
    added = [{"id": i, "content": text, "special": True} for i, text in enumerate(texts)]
    return {
        "tokenizer.json": {"added_tokens": added, "post_processor": post, **(more or {})},
        "tokenizer_config.json": settings,
    }


def _template(
    first: str | None = None, last: str | None = None, middle: str = ""
) -> dict[str, Any]:
    """A TemplateProcessing with a token before and after a text; `middle` between two."""

    def token(text: str | None) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": text, "type_id": 0}}] if text else []

    a, b = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*token(first), a, *token(last)],
        "pair": [*token(first), a, *token(middle), b, *token(last)],
    }


def _steps(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "processors": list(steps)}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

FP8 = {"proj.weight": torch.float8_e4m3fn}

FORMS: dict[str, Form] = {
    # config.json
    "least": Form({"num_key_value_heads": None, "tie_word_embeddings": None}, added=("lm_head",)),
    "nulls": Form({"head_dim": None, "num_key_value_heads": 4, "rope_scaling": None}),
    "old-theta": Form({"rope_theta": 500000, "rope_scaling": None, "torch_dtype": "bfloat16"}),
    "old-linear": Form({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4}}),
    "old-llama3": Form({"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "both-ropes": Form(
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_theta": 30000.0,
        }
    ),
    "both-types": Form(
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0, "rope_theta": 7.0}}
    ),
    "new-default": Form({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "new-without-type": Form({"rope_parameters": {"rope_theta": 1e6}}),
    "new-llama3": Form({"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "head_dim": 64}),
    "llama3-whole-numbers": Form(
        {"rope_parameters": {**LLAMA3, "factor": 32, "low_freq_factor": 1, "high_freq_factor": 4}}
    ),
    "llama3-without-length": Form(
        {"rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}}
    ),
    "llama3-length-outside": Form(
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 128}
    ),
    "llama3-one-frequency": Form({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}),
    "yarn": Form({"rope_parameters": {**YARN, "rope_theta": 10000.0}}),
    "old-yarn": Form(
        {
            "rope_theta": 10000.0,
            "rope_scaling": {
                **YARN, "attention_factor": 0.75, "beta_fast": 16, "beta_slow": 2.0,
                "extrapolation_factor": 0.5,
            },
        }
    ),
    "yarn-without-length": Form({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
    "wide-heads": Form({"head_dim": 24}),
    "attention-biases": Form(
        {"attention_bias": True}, biases=("q_proj", "k_proj", "v_proj", "o_proj")
    ),
    "all-biases": Form(
        {"attention_bias": True, "mlp_bias": True},
        biases=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "biases-unsaid": Form(biases=("q_proj", "k_proj", "v_proj")),
    "old-class": Form({"architectures": ["LLaMAForCausalLM"]}),
    # tensors
    "frequencies-stored": Form(added=("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    "odd-widths": Form(
        {"hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 6, "head_dim": 16},
        types=EVERY_TYPE,
    ),
    "f16": Form(dtypes={"": torch.float16}, types=EVERY_TYPE),
    "f32": Form(dtypes={"": torch.float32}, types=EVERY_TYPE),
    "f64": Form(dtypes={"": torch.float64}, types=EVERY_TYPE),
    "f32-norms": Form(dtypes={"norm.weight": torch.float32}),
    "f32-embedding": Form(dtypes={"embed_tokens.weight": torch.float32}, types=EVERY_TYPE),
    "f16-after-f32": Form(dtypes={"": torch.float16, "embed_tokens.weight": torch.float32}),
    "fp8-blocks": Form(
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 24]}},
        dtypes=FP8 | {"scale_inv": torch.float32},
        scales=(("_scale_inv", "32 x 24"),),
        types=EVERY_TYPE,
    ),
    "fp8-tensors": Form(
        {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}},
        dtypes=FP8,
        scales=(("_scale_inv", ()), ("_activation_scale", ())),
    ),
    "fp8-rows": Form(
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                    }
                },
            }
        },
        dtypes=FP8,
        scales=(("_scale", "1 x 4096"),),
    ),
    "fp8-modelopt": Form(
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
        dtypes=FP8 | {"scale": torch.float32},
        scales=(("_scale", ()), ("!input_scale", ()), ("!k_scale", ())),
    ),
    "fp8-alone": Form(dtypes={"mlp.up_proj.weight": torch.float8_e5m2}),
    "pytorch": Form(weights="pytorch_model.bin", dtypes={"norm.weight": torch.float16}),
    # names
    "instruct": Form(folder="Llama-3.2-1B-Instruct"),
    "chat-version": Form(folder="tinyllama-15m-chat-v1.0"),
    "size-fits": Form(folder="Tiny-Llama-0.2M-it"),
    "spaces": Form(folder="My own model 7B"),
    "version-alone": Form(folder="v1.0"),
    "quant-in-name": Form(folder="base-Q4_K-fp16"),
    "name-in-config": Form({"_name_or_path": "meta-llama/Llama-2-7b-chat-hf"}),
    "path-in-config": Form({"_name_or_path": "/home/user/models/Llama-2-7b"}),
    # model cards
    "card": Form(
        files=_card(
            "license: llama3.2\nlanguage:\n- en\n- no\ntags:\n- a\n- b\n"
            "pipeline_tag: text-generation\n"
            "base_model: meta-llama/Llama-3.2-1B\ndatasets:\n- org/Set-v2\nlibrary_name: x\n"
        )
    ),
    "card-many": Form(
        files=_card(
            "name: Named\nauthor: Somebody\nmodel_creator: Else\nversion: v9\nlanguage: en\n"
            "license: [mit, apache-2.0]\nlicense_name: own\nlicense_link: LICENSE\nurl: https://x\n"
            "base_models:\n- a/B-7B-v1\n- https://huggingface.co/c/D-2B-Chat\n- https://x.y/z\n"
            "- name: Inline\n  version: '3'\n"
            "datasets:\n- https://huggingface.co/datasets/e/F\n- g\n- https://arxiv.org/abs/1\n"
        )
    ),
    "card-tab": Form(files=_card("tags:\n-\ta\nmodel_name: Tabbed\n")),
    "card-empty": Form(files={"README.md": ""}),
    "card-without-front": Form(files={"README.md": "# Title\nlicense: mit\n"}),
    "card-list": Form(files=_card("- a\n- b\n")),
    # generation_config.json
    "sampling": Form(
        files={
            "generation_config.json": {
                "do_sample": True, "temperature": 0.6, "top_p": 1, "top_k": 20, "min_p": 0.05,
                "repetition_penalty": 1.1,
            }
        }
    ),
    "sampling-penalties": Form(
        files={"generation_config.json": {"penalty_repeat": 1.2, "repetition_penalty": 1.3}}
    ),
    "sampling-nulls": Form(files={"generation_config.json": {"temperature": None, "top_k": None}}),
    "sampling-broken": Form(files={"generation_config.json": "{"}),
    # vocabulary
    "padded": Form({"vocab_size": 2050}),
    "adds-bos": Form(files=_tokens(_template("<s>"), **NAMED)),
    "adds-bos-unlike-settings": Form(
        files=_tokens(_template("<s>"), **NAMED, add_bos_token=False, add_eos_token=True)
    ),
    "adds-both": Form(files=_tokens(_template("<s>", "</s>"), **NAMED, add_bos_token=True)),
    "adds-other-end": Form(files=_tokens(_template("<s>", "<|end|>"), **NAMED)),
    "adds-unnamed-bos": Form(files=_tokens(_template("<s>"), eos_token="</s>")),
    "adds-other-bos": Form(files=_tokens(_template("<|end|>"), **NAMED)),
    "adds-cls": Form(files=_tokens(_template("<s>", "</s>"), cls_token="<s>", sep_token="</s>")),
    "adds-separator": Form(files=_tokens(_template("<s>", None, "</s>"), **NAMED)),
    "adds-strange-middle": Form(files=_tokens(_template("<s>", None, "<|end|>"), **NAMED)),
    "byte-level": Form(files=_tokens(BYTE_LEVEL, **NAMED, add_bos_token=True)),
    "byte-level-template": Form(files=_tokens(_steps(BYTE_LEVEL, _template("<s>")), **NAMED)),
    "template-byte-level": Form(
        files=_tokens(_steps(_template("<s>", "</s>"), BYTE_LEVEL), **NAMED, add_bos_token=False)
    ),
    "roberta": Form(
        files=_tokens({"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, **NAMED)
    ),
    "no-settings": Form(
        files={k: v for k, v in _tokens(_template("<s>")).items() if k == "tokenizer.json"}
    ),
    "tokens-as-objects": Form(
        files=_tokens(
            None, bos_token={"content": "<s>"}, eos_token={"content": "<|end|>"}, pad_token=None,
            unk_token="<unk>", mask_token="<mask>", add_bos_token=True, add_prefix_space=False,
        )
    ),
    "lower-case": Form(
        files=_tokens(
            None,
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
            **NAMED,
        )
    ),
    "chat-template": Form(files=_tokens(chat_template="{{ 1 }}", add_bos_token=True)),
    "chat-templates": Form(
        files=_tokens(
            chat_template=[
                {"name": "default", "template": "{{ 1 }}"},
                {"name": "tool use", "template": "{{ 2 }}"},
                {"name": "empty"},
            ]
        )
    ),
    "chat-template-file": Form(
        files={**_tokens(**NAMED), "chat_template.jinja": "{{ 'é' }}\n"}
    ),
    "chat-template-files": Form(
        files={
            **_tokens(**NAMED), "chat_template.jinja": "{{ 1 }}",
            "additional_chat_templates/tools.jinja": "{{ 2 }}",
        }
    ),
    "chat-template-json": Form(
        files={**_tokens(**NAMED), "chat_template.json": {"chat_template": "{{ 1 }}"}}
    ),
    "chat-template-number": Form(files=_tokens(chat_template=3)),
    "bert": Form(
        files=_tokens(
            None,
            {"normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": None}},
        )
    ),
    "added-tokens": Form(
        {"vocab_size": 2052},
        files={
            "added_tokens.json": {"<extra>": 2048, "<|system|>": 2049},
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    "0": {"content": "<unk>", "special": True},
                    "2049": {"content": "<|system|>", "special": False},
                    "2050": {"content": "\u2581a\u2581b", "special": False},
                    "2090": {"content": "outside", "special": True},
                }
            },
        },
    ),
    "code-llama": Form({"vocab_size": 32016, "hidden_size": 32, "num_attention_heads": 4}),
}  # fmt: skip


def build(name: str, root: Path) -> Path:
    """Write the checkpoint `name` into a folder of `root`, named as the form says; that folder."""
    form = FORMS[name]
    folder = root / name / form.folder
    folder.mkdir(parents=True)
    config = {**CONFIG, **form.config}
    # Some null is what the form is about.
    taken = {key for key, value in form.config.items() if value is None and key in CONFIG}
    files = {"config.json": {k: v for k, v in config.items() if k not in taken}, **form.files}
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, "utf-8")
    shutil.copyfile(VOCABULARY, folder / "tokenizer.model")
    if form.weights.endswith(".safetensors"):
        save_file(tensors(name), folder / form.weights, {"format": "pt"})
    else:
        torch.save(tensors(name), folder / form.weights)
    return folder


def tensors(name: str) -> dict[str, torch.Tensor]:
    """The tensors of form `name`: the same on every machine."""
    form, source = FORMS[name], random.Random(name)
    found = {}
    for key, shape in _shapes(form).items():
        count = torch.Size(shape).numel()
        raw = torch.frombuffer(bytearray(source.randbytes(2 * count)), dtype=torch.int16)
        dtype = next((d for end, d in reversed(form.dtypes.items()) if key.endswith(end)), None)
        found[key] = (raw.to(torch.float64) / 2**18).to(dtype or torch.bfloat16).view(shape)
    return found


def _shapes(form: Form) -> dict[str, tuple[int, ...]]:
    config = {**CONFIG, **form.config}
    embd, ff, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head = config.get("head_dim") or embd // heads
    q, kv = heads * head, (config["num_key_value_heads"] or heads) * head
    linear = {
        "self_attn.q_proj": (q, embd), "self_attn.k_proj": (kv, embd),
        "self_attn.v_proj": (kv, embd), "self_attn.o_proj": (embd, q),
        "mlp.gate_proj": (ff, embd), "mlp.up_proj": (ff, embd), "mlp.down_proj": (embd, ff),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], embd),
        "model.norm.weight": (embd,),
        "model.layers.0.input_layernorm.weight": (embd,),
        "model.layers.0.post_attention_layernorm.weight": (embd,),
    }
    for key, shape in linear.items():
        shapes[f"model.layers.0.{key}.weight"] = shape
        if key.partition(".")[2] in form.biases:
            shapes[f"model.layers.0.{key}.bias"] = shape[:1]
        for end, blocks in form.scales:
            if isinstance(blocks, str):
                sizes = (int(size) for size in blocks.split(" x "))
                blocks = tuple(-(-n // size) for n, size in zip(shape, sizes, strict=True))
            # "!" begins a name of its own beside `weight`.
            name = f"model.layers.0.{key}.weight{end}".replace("weight!", "")
            shapes[name] = blocks
    for key in form.added:
        if key == "lm_head":
            shapes["lm_head.weight"] = (config["vocab_size"], embd)
        else:
            shapes[key] = (head // 2,)
    return shapes
