"""Tiny random checkpoints for llama.cpp's converter, made by transformers: dense models, mixtures
of experts, recurrent and hybrid ones, encoders."""

from pathlib import Path
from typing import Any

from support.zoo import Animal
from support.zoo_build import _write_bpe

VOCABULARY = 759
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 2}
_ATTENTION = {
    **_SIZES, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
_IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
_EXPERTS = {**_ATTENTION, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
_MAMBA = {
    "mamba_n_heads": 8, "mamba_d_state": 64, "mamba_n_groups": 1,
}  # fmt: skip
# The model type of transformers and its configuration.
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "Arcee": ("arcee", {**_ATTENTION, **_IDS}),
    "Starcoder2": ("starcoder2", _ATTENTION),
    "StableLm": ("stablelm", _ATTENTION),
    "Cohere": ("cohere", {**_ATTENTION, **_IDS}),
    "Bloom": ("bloom", {**_SIZES, "n_layer": 2, "n_head": 4}),
    "Phi": ("phi", {**_ATTENTION, "num_key_value_heads": 4}),
    "Exaone4": ("exaone4", {**_ATTENTION, "sliding_window": 64, "sliding_window_pattern": 4}),
    "Qwen2Moe": (
        "qwen2_moe", {**_EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 256}
    ),
    "Olmoe": ("olmoe", {**_ATTENTION, "num_experts": 8, "num_experts_per_tok": 2}),
    "GraniteMoe": (
        "granitemoe", {**_ATTENTION, "num_local_experts": 8, "num_experts_per_tok": 2}
    ),
    "GptOss": (
        "gpt_oss",
        {**_ATTENTION, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64},
    ),
    "DeepseekV3": (
        "deepseek_v3",
        {
            **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2,
            "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 64,
            "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64,
        },
    ),
    "Mamba": ("mamba", {**_SIZES, **_IDS, "state_size": 16}),
    "Mamba2": (
        "mamba2",
        {**_SIZES, **_IDS, "num_heads": 8, "head_dim": 64, "n_groups": 1, "state_size": 64},
    ),
    "GraniteMoeHybrid": (
        "granitemoehybrid",
        {
            **_ATTENTION, **_MAMBA, "mamba_d_head": 64, "mamba_expand": 2, "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 256,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "FalconH1": (
        "falcon_h1",
        {**_ATTENTION, **_MAMBA, "mamba_d_ssm": 256, "mamba_d_head": 32, "head_dim": 64},
    ),
    "Lfm2": (
        "lfm2",
        {
            **_ATTENTION, "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "Bert": (
        "bert",
        {**_SIZES, "vocab_size": 30, "num_attention_heads": 4, "intermediate_size": 512},
    ),
    "ModernBert": (
        "modernbert",
        {
            **_SIZES, **_IDS, "num_attention_heads": 4, "intermediate_size": 512,
            "cls_token_id": 0, "sep_token_id": 0, "layer_norm_eps": 1e-5,
        },
    ),
}  # fmt: skip
ENCODERS = ("Bert", "ModernBert")


def build(name: str, root: Path) -> Path:
    """Write checkpoint `name` into `root / name`, in bfloat16; that folder."""
    import torch
    import transformers

    folder, (kind, config) = root / name, FOREIGN[name]
    folder.mkdir(parents=True)
    torch.manual_seed(len(name))
    auto = transformers.AutoModel if name in ENCODERS else transformers.AutoModelForCausalLM
    model = auto.from_config(transformers.AutoConfig.for_model(kind, **config))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    if name == "Bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    else:
        _write_bpe(folder, Animal.specials)
    return folder


def recognising(tree: Path, place: Path) -> Path:
    """A checkout in `place` with the code of `tree`, which takes the vocabularies of these models
    for GPT-2's: of made-up ones it knows none."""
    place.mkdir()
    for name in ("conversion", "gguf-py"):
        (place / name).symlink_to(tree.absolute() / name)
    script = (tree / "convert_hf_to_gguf.py").read_text()
    begin = "if __name__ == "
    assert begin in script
    known = 'conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"'
    script = script.replace(begin, f"import conversion.base\n{known}\n\n{begin}")
    (place / "convert_hf_to_gguf.py").write_text(script)
    return place
