"""Tiny random checkpoints of every architecture and variant, the same bytes on every machine.

Weights are as large as in trained models (attention that looks at single positions, norms near 1),
so that what a forward pass does wrong shows. Llama has more forms in tests/support/forms.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EVERY_TYPE = ("auto", "f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Animal:
    """What is special about a checkpoint.

    config    config.json, of transformers 5 or 4
    dtype     of the weights; F8 with scales beside those of the layers, MXFP4 for experts of BF16
              weights
    biases    linear maps with one
    types     the converter's outtypes that are compared
    quantized  and the file types of llama-quantize
    extra     keys of metadata that the converter does not write
    loads, alike     whether llama.cpp can load it, and then gives transformers' probabilities
    prompt    how many tokens llama.cpp is asked about: not past a window that it passes over
    in_transformers  whether this version of it can load the checkpoint on a CPU
    head      whether there is a head that is a copy of the embedding
    nextn     whether the layers that guess further tokens are there
    stacked   whether experts are stacks, which only those are that may be either
    prefix, beside   what is before every name, and tensors that are no text
    loras     of which matrices lie beside those of layers
    known     what config.json says of the class that llama.cpp's converter knows its text by, where
              it does not know its own
    pre       the pre-tokenizer of a small byte-level BPE, which nobody recognises
    specials  its special tokens, the end of a text last
    """

    config: Mapping[str, Any]
    dtype: str = "BF16"
    biases: tuple[str, ...] = ()
    types: tuple[str, ...] = ("auto",)
    quantized: tuple[str, ...] = ("Q4_K_M",)
    extra: tuple[str, ...] = ()
    loads: bool = True
    alike: bool = True
    shards: int = 1
    head: bool = False
    nextn: bool = True
    stacked: bool = False
    prefix: str = ""
    beside: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    prompt: int = 150
    in_transformers: bool = True
    pre: str | None = None
    specials: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    files: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of config.json that is about text."""
        text: Mapping[str, Any] = self.config.get("text_config", self.config)
        return text

    @property
    def family(self) -> str:
        return str(self.text["model_type"])

    @property
    def is_gemma4(self) -> bool:
        return self.family.startswith("gemma4")

    @property
    def shifted(self) -> bool:
        """Whether norms hold their distance from 1."""
        if "qwen3_5" in self.family:
            return True
        return "gemma" in self.family and not self.is_gemma4


# Wide enough for blocks of 256, and as narrow as rows of 64 and 96 can be.
WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "vocab_size": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NARROW = {
    **WIDE, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "rms_norm_eps": 1e-5,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
QKV = ("q_proj", "k_proj", "v_proj")

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu"}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
GLM4_MOE = {
    "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "hidden_act": "silu",
    "bos_token_id": None, "eos_token_id": [759, 757, 758], "pad_token_id": 759,
}  # fmt: skip
GLM_SPECIALS = ("[gMASK]", "<|user|>", "<|observation|>", "<|endoftext|>")
QWEN35 = {
    "model_type": "qwen3_5_text", "hidden_act": "silu", "rms_norm_eps": 1e-6, "head_dim": 64,
    "attn_output_gate": True, "attention_bias": False, "linear_conv_kernel_dim": 4,
}  # fmt: skip
QWEN35_MOE = {"model_type": "qwen3_5_moe_text"}
NO_MLP = {key: value for key, value in NARROW.items() if key != "intermediate_size"}
MROPE = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
SMOLLM3 = {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_act": "silu"}
GRANITE = {
    "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_act": "silu",
    "attention_multiplier": 0.02, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
    "logits_scaling": 8.0, "pad_token_id": 0,
}  # fmt: skip
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_act": "silu",
    "attention_bias": False, "pad_token_id": 0,
}  # fmt: skip
OLMO3 = {**OLMO2, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu"}
MINISTRAL3 = {
    "model_type": "ministral3", "hidden_act": "silu", "sliding_window": None, "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32,
        "rope_theta": 1e4, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14,
}  # fmt: skip
SEES = ("vision_tower.ln_pre.weight", "multi_modal_projector.norm.weight")
GEMMA = {
    "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh", "pad_token_id": 0,
}  # fmt: skip
GEMMA2 = {
    **GEMMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 40, "rope_theta": 10000.0,
    "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0,
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "pad_token_id": 0,
    "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 40,
}  # fmt: skip
GEMMA4_TEXT = {
    "model_type": "gemma4_text", "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": True, "sliding_window": 40,
    "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": 4.0,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
}  # fmt: skip
GEMMA4 = {**GEMMA4_TEXT, "architectures": ["Gemma4ForCausalLM"]}
GEMMA4_MOE = {
    "attention_k_eq_v": True, "enable_moe_block": True, "hidden_size_per_layer_input": 0,
    "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 256,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
HEARS = ("vision_tower.std_bias", "audio_tower.output_proj.bias", "embed_vision.norm.weight")
PHI3_CLASS = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
PHI3 = {
    **PHI3_CLASS, "hidden_act": "silu",
    "tie_word_embeddings": False, "rope_theta": 10000.0, "pad_token_id": 0,
    "original_max_position_embeddings": 64, "vocab_size": 2052,
}  # fmt: skip
# As transformers 5 writes them; tokenizer_config.json as it was published.
PHI4 = {
    **PHI3, "rope_theta": None, "dtype": "bfloat16", "vocab_size": 800, "bos_token_id": 756,
    "eos_token_id": 758, "pad_token_id": 756,
}  # fmt: skip
PHI4_TOKENS = {
    "tokenizer_config.json": {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "add_prefix_space": False,
        "chat_template": "{{ messages[0]['content'] }}",
    }
}  # fmt: skip
LONG_FACTORS = [1 + i * 1.1 for i in range(6)]
PHI4_MINI_ROPE = {
    "rope_type": "longrope", "type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 64, "short_factor": [1.0] * 6, "long_factor": LONG_FACTORS,
}  # fmt: skip
PHI4_MINI = {
    **NARROW, **PHI4, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
    "rope_parameters": PHI4_MINI_ROPE,
}  # fmt: skip
# Behind 256 positions the long divisors.
PHI4_MULTIMODAL = {
    **PHI4_MINI, "architectures": ["Phi4MultimodalForCausalLM"], "model_type": "phi4_multimodal",
    "original_max_position_embeddings": 256, "max_position_embeddings": 1024,
    "rope_parameters": {**PHI4_MINI_ROPE, "original_max_position_embeddings": 256,
                        "short_factor": [1 + i / 8 for i in range(6)]},
    "vision_config": {
        "model_type": "phi4_multimodal_vision", "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "crop_size": 28},
    "audio_config": {
        "model_type": "phi4_multimodal_audio", "hidden_size": 32, "intermediate_size": 32,
        "num_blocks": 1, "num_attention_heads": 2, "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32},
}  # fmt: skip
EXTENDED = (
    "model.embed_tokens_extend.audio_embed.encoder.embed.out.bias",
    "model.embed_tokens_extend.image_embed.img_processor.post_layernorm.bias",
)
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_act": "silu",
    "attention_bias": True, "tie_word_embeddings": False, "swiglu_limit": 7.0, "head_dim": 32,
    "sliding_window": 40, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
# llama.cpp looks for <|endoftext|> in what is called Phi-3.
PHI3_TOKENS = {
    "tokenizer_config.json": {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": False},
            "2048": {"content": "<|endoftext|>", "special": True},
            "2049": {"content": "<|user|>", "special": False},
        },
    },
    "added_tokens.json": {"<|extra|>": 2050},
    "tokenizer.json": {
        "added_tokens": [
            {"id": 1, "content": "<s>", "special": True},
            {"id": 2051, "content": "▁two▁words", "special": False},
        ]
    },
}  # fmt: skip
TINY = {
    **NARROW, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip

ZOO: dict[str, Animal] = {
    "qwen2": Animal(
        {**QWEN2, **WIDE, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
         "tie_word_embeddings": False, "use_sliding_window": False},
        biases=QKV, types=EVERY_TYPE,
    ),
    "qwen2-tied": Animal(
        {**QWEN2, **NARROW, "rope_theta": 1e6, "tie_word_embeddings": True,
         "sliding_window": 32, "use_sliding_window": False, "max_window_layers": 1},
        biases=QKV, dtype="F16",
    ),
    "qwen2-window": Animal(
        {**QWEN2, **NARROW, "rope_theta": 1e6, "tie_word_embeddings": True,
         "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1},
        biases=QKV,
        extra=("qwen2.attention.sliding_window", "qwen2.attention.sliding_window_pattern"),
        prompt=30,
    ),
    "qwen2-linear": Animal(
        {**QWEN2, **NARROW, "rope_theta": 1e4, "num_key_value_heads": 6, "head_dim": 16,
         "rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": False},
        biases=QKV, dtype="F32",
    ),
    "qwen2-bpe": Animal(
        {**QWEN2, **NARROW, "rope_theta": 1e6, "tie_word_embeddings": True, "vocab_size": 800,
         "num_hidden_layers": 1, "bos_token_id": 756, "eos_token_id": 758},
        biases=QKV, pre="qwen2",
    ),
    "qwen2-yarn": Animal(
        {**QWEN2, **WIDE, "tie_word_embeddings": True, "num_hidden_layers": 1,
         "rope_parameters": {**YARN, "rope_theta": 10000.0}},
        biases=QKV,
    ),
    # llama.cpp's loader has no use for the factor of its own.
    "qwen3-yarn": Animal(
        {**QWEN3, **NARROW, "rope_theta": 1e4, "tie_word_embeddings": True, "head_dim": 64,
         "num_attention_heads": 2,
         "rope_scaling": {**YARN, "attention_factor": 0.8, "beta_fast": 16, "beta_slow": 2.0}},
        alike=False,
    ),
    "qwen3": Animal(
        {**QWEN3, **WIDE, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
         "head_dim": 48, "tie_word_embeddings": True}
    ),
    "qwen3-untied": Animal(
        {**QWEN3, **NARROW, "rope_theta": 1e6, "tie_word_embeddings": False, "head_dim": 32,
         "attention_bias": False, "rope_scaling": None, "num_key_value_heads": 3}
    ),
    "qwen3-biases": Animal(
        {**QWEN3, **NARROW, "rope_theta": 1e6, "tie_word_embeddings": True,
         "attention_bias": True, "num_attention_heads": 2, "num_hidden_layers": 1},
        biases=(*QKV, "o_proj"), loads=False,
    ),
    "qwen3-moe": Animal(
        {**QWEN3_MOE, **WIDE, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
         "head_dim": 48, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 256,
         "tie_word_embeddings": True, "num_hidden_layers": 1},
        pre="qwen2",
    ),
    # Ten comes behind nine, the experts of a layer are in several files, no head_dim.
    "qwen3-moe-12": Animal(
        {**QWEN3_MOE, **NARROW, "rope_theta": 1e4, "num_experts": 12, "num_experts_per_tok": 2,
         "moe_intermediate_size": 64, "tie_word_embeddings": False, "attention_bias": False},
        types=EVERY_TYPE, shards=3, pre="qwen2",
    ),
    "glm4-moe": Animal(
        {**WIDE, **GLM4_MOE, "rope_theta": 1e6, "partial_rotary_factor": 0.5, "head_dim": 48,
         "attention_bias": True, "use_qk_norm": True, "first_k_dense_replace": 1,
         "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
         "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
         "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "tie_word_embeddings": False},
        biases=QKV, pre="glm4", specials=GLM_SPECIALS,
    ),
    # In groups, saved by transformers: without the layer that guesses, although config.json has it.
    "glm4-moe-groups": Animal(
        {**NARROW, **GLM4_MOE, "rope_parameters": {
             "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
         "attention_bias": False, "first_k_dense_replace": 2, "n_routed_experts": 12,
         "num_experts_per_tok": 3, "moe_intermediate_size": 64, "n_shared_experts": 2,
         "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
         "num_nextn_predict_layers": 1, "tie_word_embeddings": True},
        types=EVERY_TYPE, dtype="F16", shards=3, pre="glm4", specials=GLM_SPECIALS,
        nextn=False,
    ),
    # llama.cpp rounds the limits of YaRN.
    "gpt-oss": Animal(
        {**WIDE, **GPT_OSS, "intermediate_size": 256, "num_local_experts": 4,
         "rope_theta": 1e4, "quantization_config": MXFP4,
         "rope_scaling": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}},
        dtype="MXFP4", biases=(*QKV, "o_proj"), types=EVERY_TYPE, pre="gpt-4o",
        quantized=("Q4_K_M", "Q8_0", "MXFP4_MOE", "F16"), alike=False,
    ),
    # Rows of 96 and 160, limits at the ends, where there is nothing to round, layers in another
    # order.
    "gpt-oss-otherwise": Animal(
        {**NARROW, **GPT_OSS, "num_local_experts": 8, "quantization_config": MXFP4,
         "rope_parameters": {**YARN, "rope_theta": 5.0, "truncate": False,
                             "original_max_position_embeddings": 200},
         "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        dtype="MXFP4", biases=(*QKV, "o_proj"), pre="gpt-4o",
        quantized=("Q4_K_M", "Q8_0"), extra=("gpt-oss.attention.sliding_window_pattern",),
    ),
    "gpt-oss-bf16": Animal(
        {**NARROW, **GPT_OSS, "num_local_experts": 3, "num_hidden_layers": 2,
         "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
        biases=(*QKV, "o_proj"), types=EVERY_TYPE, pre="gpt-4o", quantized=("Q4_K_M", "MXFP4_MOE"),
        shards=3,
    ),
    # Two value heads share a key head; with the layer that guesses.
    "qwen3.5": Animal(
        {**WIDE, **QWEN35, "architectures": ["Qwen3_5ForCausalLM"], "num_hidden_layers": 4,
         "layer_types": [*["linear_attention"] * 3, "full_attention"],
         "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 64, "linear_value_head_dim": 64, "mtp_num_hidden_layers": 1,
         "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True},
         "tie_word_embeddings": False},
        types=EVERY_TYPE, pre="qwen35",
    ),
    # Sees; as many value as key heads, every second layer with attention, saved by transformers.
    "qwen3.5-vision": Animal(
        {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
         "text_config": {
             **NARROW, **QWEN35, "full_attention_interval": 2, "linear_num_key_heads": 3,
             "linear_num_value_heads": 3, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
             "mtp_num_hidden_layers": 1, "rope_parameters": MROPE, "tie_word_embeddings": True},
         "vision_config": {
             "model_type": "qwen3_5_vision", "depth": 1, "hidden_size": 32, "num_heads": 2,
             "intermediate_size": 32, "out_hidden_size": 96, "num_position_embeddings": 16},
         "tie_word_embeddings": True},
        dtype="F16", types=EVERY_TYPE, pre="qwen35", nextn=False, prompt=140,
        prefix="model.language_model.", beside=("model.visual.merger.norm.weight",),
    ),
    # Three value heads share a key head, layers in another order, YaRN of half of a head.
    "qwen3.5-yarn": Animal(
        {**TINY, **QWEN35, "architectures": ["Qwen3_5ForCausalLM"], "head_dim": 32,
         "layer_types": ["full_attention", "linear_attention", "linear_attention"],
         "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16, "mtp_num_hidden_layers": 1, "tie_word_embeddings": False,
         "rope_parameters": {**YARN, "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                             "mrope_section": [3, 3, 2]}},
        dtype="F32", pre="qwen35", shards=2,
    ),
    "qwen3.5-moe": Animal(
        {**WIDE, **QWEN35, **QWEN35_MOE, "architectures": ["Qwen3_5MoeForCausalLM"],
         "layer_types": ["linear_attention", "full_attention"], "num_experts": 8,
         "num_experts_per_tok": 3, "moe_intermediate_size": 256, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
         "shared_expert_intermediate_size": 512, "mtp_num_hidden_layers": 1,
         "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]}, "tie_word_embeddings": False},
        types=EVERY_TYPE, pre="qwen35",
    ),
    # Sees; experts in stacks, as transformers saves them.
    "qwen3.5-moe-vision": Animal(
        {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
         "text_config": {
             **NO_MLP, **QWEN35, **QWEN35_MOE, "num_experts": 6, "num_experts_per_tok": 2,
             "layer_types": ["linear_attention", "linear_attention", "full_attention"],
             "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96,
             "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 16,
             "linear_value_head_dim": 16, "mtp_num_hidden_layers": 1,
             "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]},
             "tie_word_embeddings": True},
         "vision_config": {
             "model_type": "qwen3_5_moe_vision", "depth": 1, "hidden_size": 32, "num_heads": 2,
             "intermediate_size": 32, "out_hidden_size": 96, "num_position_embeddings": 16},
         "tie_word_embeddings": True},
        types=EVERY_TYPE, pre="qwen35", shards=3, stacked=True,
        prefix="model.language_model.", beside=("model.visual.merger.norm.weight",),
    ),
    "smollm3": Animal(
        {**SMOLLM3, **NARROW, "rope_theta": 5e6, "num_hidden_layers": 5, "pad_token_id": 0,
         "no_rope_layers": [1, 1, 1, 0, 1], "tie_word_embeddings": True,
         "use_sliding_window": False},
        types=EVERY_TYPE,
    ),
    # Behind 150 tokens llama.cpp is 1.3e-4 from float64 (gpukit 4e-5).
    "smollm3-yarn": Animal(
        {**SMOLLM3, **WIDE, "rope_parameters": {**YARN, "rope_theta": 1e4}, "pad_token_id": 0,
         "num_hidden_layers": 4, "tie_word_embeddings": False},
        prompt=100,
    ),
    "granite": Animal(
        {**WIDE, **GRANITE, "rope_theta": 1e7, "tie_word_embeddings": True},
        types=EVERY_TYPE,
    ),
    "granite-plain": Animal(
        {**NARROW, **GRANITE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
         "attention_multiplier": 0.0625, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
         "logits_scaling": 1, "tie_word_embeddings": False, "attention_bias": True,
         "mlp_bias": True},
        biases=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "olmo2": Animal(
        {**WIDE, **OLMO2, "rope_theta": 5e5, "tie_word_embeddings": False},
        types=EVERY_TYPE, pre="olmo",
    ),
    "olmo2-yarn": Animal(
        {**NARROW, **OLMO2, "rope_parameters": {**YARN, "rope_theta": 1e4},
         "tie_word_embeddings": False},
        pre="olmo",
    ),
    "olmo3": Animal(
        {**WIDE, **OLMO3, "sliding_window": 40, "tie_word_embeddings": False,
         "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": {
             "full_attention": {**YARN, "rope_theta": 5e5},
             "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
        pre="olmo",
    ),
    # As it was published, every fourth layer without a window.
    "olmo3-published": Animal(
        {**NARROW, **OLMO3, "sliding_window": 40, "tie_word_embeddings": False, "rope_theta": 5e5,
         "rope_scaling": {**YARN, "attention_factor": 1.2079441541679836, "beta_fast": 32.0,
                          "beta_slow": 1.0},
         "num_hidden_layers": 5},
        dtype="F16", types=EVERY_TYPE, pre="olmo",
    ),
    # llama.cpp turns layers with a window by the base of the others.
    "olmo3-bases": Animal(
        {**TINY, **OLMO3, "head_dim": 16, "sliding_window": 600, "tie_word_embeddings": False,
         "rope_parameters": {
             "full_attention": {"rope_type": "default", "rope_theta": 1e4},
             "sliding_attention": {"rope_type": "default", "rope_theta": 2e3}}},
        pre="olmo", alike=False, prompt=100,
    ),
    "mistral-v0.1": Animal(
        {**MISTRAL, **WIDE, "rope_theta": 10000.0, "sliding_window": 40,
         "tie_word_embeddings": False},
        extra=("llama.attention.sliding_window",), prompt=30,
    ),
    "mistral-v0.3": Animal(
        {**MISTRAL, **NARROW, "rope_theta": 1e6, "sliding_window": None,
         "tie_word_embeddings": False},
        types=EVERY_TYPE,
    ),
    "mistral-nemo": Animal(
        {**MISTRAL, **NARROW, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
         "sliding_window": None, "head_dim": 24, "tie_word_embeddings": False}
    ),
    "mistral-small": Animal(
        {**MISTRAL, **WIDE, "rope_theta": 1e8, "sliding_window": None, "head_dim": 64,
         "num_key_value_heads": 2, "tie_word_embeddings": True, "num_hidden_layers": 1}
    ),
    "mixtral-8x7b": Animal(
        {**MIXTRAL, **WIDE, "rope_theta": 1e6, "sliding_window": None, "num_local_experts": 8,
         "intermediate_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": False}
    ),
    # Ten comes behind nine, and the experts of a layer are in several files.
    "mixtral-12": Animal(
        {**MIXTRAL, **NARROW, "rope_parameters": {"rope_type": "default"}, "head_dim": 24,
         "intermediate_size": 64, "num_local_experts": 12, "num_experts_per_tok": 3,
         "tie_word_embeddings": True, "sliding_window": 40},
        dtype="F16", types=EVERY_TYPE, extra=("llama.attention.sliding_window",), prompt=30,
        shards=3,
    ),
    "mixtral-fp8": Animal(
        {**MIXTRAL, **NARROW, "rope_theta": 1e6, "intermediate_size": 64, "num_local_experts": 3,
         "num_hidden_layers": 1, "tie_word_embeddings": True,
         "quantization_config": {"quant_method": "fp8", "weight_block_size": [48, 64]}},
        dtype="F8", in_transformers=False,
    ),
    "mistral-small-3.1": Animal(
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "text_config": {**NARROW, "model_type": "mistral", "hidden_act": "silu", "head_dim": 24,
                         "rope_theta": 1e6, "sliding_window": None, "tie_word_embeddings": False},
         "vision_config": PIXTRAL, "tie_word_embeddings": False, "spatial_merge_size": 2},
        dtype="F16", prefix="language_model.", beside=SEES,
    ),
    # Queries grow every 32 positions.
    "ministral3": Animal(
        {**WIDE, **MINISTRAL3, "architectures": ["Ministral3ForCausalLM"], "head_dim": 48,
         "tie_word_embeddings": True},
        types=EVERY_TYPE, pre="tekken",
    ),
    "ministral3-vision": Animal(
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "text_config": {**NARROW, **MINISTRAL3, "head_dim": 16, "tie_word_embeddings": True},
         "vision_config": PIXTRAL, "tie_word_embeddings": True, "spatial_merge_size": 2},
        prefix="model.language_model.", beside=tuple(f"model.{name}" for name in SEES),
    ),
    # One scale a matrix, and one that activations would have.
    "ministral3-fp8": Animal(
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "text_config": {**NARROW, **MINISTRAL3, "head_dim": 16, "tie_word_embeddings": True,
                         "num_hidden_layers": 1},
         "vision_config": PIXTRAL, "tie_word_embeddings": True,
         "quantization_config": {"quant_method": "fp8", "activation_scheme": "static",
                                 "weight_block_size": None}},
        dtype="F8", in_transformers=False, prefix="language_model.",
    ),
    "gemma": Animal(
        {**WIDE, **GEMMA, "head_dim": 48, "num_key_value_heads": 1, "rope_theta": 10000.0}
    ),
    "gemma-f16": Animal(
        {**NARROW, **GEMMA, "hidden_act": "gelu", "rope_parameters": None, "head_dim": 16},
        dtype="F16", types=EVERY_TYPE,
    ),
    "gemma-f32-head": Animal(
        {**NARROW, **GEMMA, "head_dim": 24, "rope_theta": 50000.0, "num_key_value_heads": 6},
        dtype="F32", extra=("gemma.rope.freq_base",), head=True,
    ),
    "gemma2": Animal({**WIDE, **GEMMA2, "head_dim": 48, "query_pre_attn_scalar": 48}),
    # The depth of the 27B, whose query scale is that of its width a head.
    "gemma2-27b": Animal(
        {**TINY, **GEMMA2, "num_hidden_layers": 46, "query_pre_attn_scalar": 16}
    ),
    "gemma2-otherwise": Animal(
        {**NARROW, **GEMMA2, "head_dim": 16, "query_pre_attn_scalar": 40, "rope_theta": 20000.0,
         "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
        dtype="F16", alike=False,
        extra=("gemma2.attention.sliding_window_pattern", "gemma2.attention.scale",
               "gemma2.rope.freq_base"),
    ),
    "gemma3": Animal(
        {**WIDE, **GEMMA3, "head_dim": 48, "query_pre_attn_scalar": 48, "rope_theta": 1000000.0,
         "rope_local_base_freq": 10000.0, "rope_scaling": None, "sliding_window_pattern": 6}
    ),
    "gemma3-linear": Animal(
        {**NARROW, **GEMMA3, "head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 7,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
        dtype="F16",
    ),
    "gemma3-27b": Animal(
        {**TINY, **GEMMA3, "num_hidden_layers": 62, "query_pre_attn_scalar": 16,
         "final_logit_softcapping": 2.0}
    ),
    "gemma3-otherwise": Animal(
        {**NARROW, **GEMMA3, "head_dim": 16, "query_pre_attn_scalar": 40, "rope_theta": 20000.0,
         "tie_word_embeddings": False,
         "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
        alike=False,
        extra=("gemma3.attention.sliding_window_pattern", "gemma3.attention.scale"),
    ),
    "gemma3-vision": Animal(
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
         "text_config": {**NARROW, **GEMMA3, "head_dim": 16, "query_pre_attn_scalar": 16,
                         "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
         "vision_config": {
             "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32,
             "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
         "mm_tokens_per_image": 4, "tie_word_embeddings": True},
        prefix="language_model.",
        beside=("vision_tower.vision_model.post_layernorm.weight",
                "multi_modal_projector.mm_soft_emb_norm.weight"),
    ),
    # As E2B: layers 4 and 5 have the keys and values of 2 and 3, and what they do not use.
    "gemma4-e2b": Animal(
        {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
         "text_config": {
             **WIDE, **GEMMA4_TEXT, "num_hidden_layers": 6, "layer_types": [SLIDING, FULL] * 3,
             "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64,
             "hidden_size_per_layer_input": 128, "vocab_size_per_layer_input": 2048,
             "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
         "vision_config": None, "audio_config": None, "tie_word_embeddings": True},
        types=EVERY_TYPE, prefix="model.language_model.",
        beside=tuple(f"model.{name}" for name in HEARS),
    ),
    # As 31B: whole layers have no values and fewer heads of keys.
    "gemma4-31b": Animal(
        {**NARROW, **GEMMA4, "layer_types": [SLIDING, SLIDING, FULL], "head_dim": 16,
         "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
         "hidden_size_per_layer_input": 0},
        dtype="F16",
    ),
    "gemma4-26b-a4b": Animal(
        {**WIDE, **GEMMA4, **GEMMA4_MOE, "layer_types": [SLIDING, FULL], "head_dim": 32,
         "global_head_dim": 64, "num_global_key_value_heads": 2},
        types=EVERY_TYPE, quantized=("Q4_K_M", "MXFP4_MOE"),
    ),
    # As transformers saves one: heads by layer, shared layers without keys; no cap.
    "gemma4-saved": Animal(
        {**NARROW, **GEMMA4, "layer_types": [SLIDING, FULL, SLIDING], "head_dim": 24,
         "num_hidden_layers": 3, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 32,
         "vocab_size_per_layer_input": 2048, "final_logit_softcapping": None,
         "per_layer_config": {"1": {"head_dim": 16}, "2": {"head_dim": 16}}},
        extra=("gemma4.final_logit_softcapping",),
    ),
    # One of two versions of the converter asks for a width of experts, which there are none of.
    "gemma4-unified": Animal(
        {"architectures": ["Gemma4UnifiedForConditionalGeneration"],
         "model_type": "gemma4_unified",
         "text_config": {
             **NARROW, **GEMMA4_TEXT, "model_type": "gemma4_unified_text",
             "num_kv_shared_layers": 1, "layer_types": [SLIDING, FULL, FULL], "head_dim": 16,
             "global_head_dim": 32, "use_bidirectional_attention": "vision",
             "expert_intermediate_size": None},
         "vision_config": None, "audio_config": None, "tie_word_embeddings": True},
        prefix="model.language_model.", beside=("model.vision_embedder.patch_ln1.weight",),
        files={"generation_config.json": {"suppress_tokens": [15, 300]}},
    ),
    "phi3-4k": Animal(
        {**WIDE, **PHI3, "rope_scaling": None, "sliding_window": 40, "num_key_value_heads": 8},
        prompt=30, files=PHI3_TOKENS,
    ),
    "phi3-128k": Animal(
        {**NARROW, **PHI3, "sliding_window": 4096,
         "rope_scaling": {"type": "longrope", "short_factor": [1 + i / 8 for i in range(8)],
                          "long_factor": [1 + i * 1.1 for i in range(8)]}},
        types=EVERY_TYPE, dtype="F16", files=PHI3_TOKENS,
    ),
    "phi3-su": Animal(
        {**NARROW, **PHI3, "sliding_window": None,
         "rope_scaling": {"type": "su", "short_factor": [1.0] * 8,
                          "long_factor": [1 + i * 1.1 for i in range(8)]}},
        in_transformers=False, files=PHI3_TOKENS,
    ),
    "phi4": Animal(
        {**NARROW, **PHI3, "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
         "original_max_position_embeddings": 512, "sliding_window": None},
        dtype="F32",
    ),
    "phi4-14b": Animal(
        {**WIDE, **PHI4, "original_max_position_embeddings": 512, "sliding_window": None,
         "num_hidden_layers": 1, "rope_parameters": {
             "rope_type": "default", "rope_theta": 250000.0, "partial_rotary_factor": 1.0}},
        pre="dbrx", files=PHI4_TOKENS,
    ),
    "phi4-mini": Animal(PHI4_MINI, pre="gpt-4o", files=PHI4_TOKENS, prompt=100),
    "phi4-multimodal": Animal(
        PHI4_MULTIMODAL, pre="gpt-4o", files=PHI4_TOKENS, beside=EXTENDED, known=PHI3_CLASS
    ),
    # As it was published, with weights for pictures and for sound beside those of layers.
    "phi4mm": Animal(
        {**NARROW, **PHI4, "architectures": ["Phi4MMForCausalLM"], "model_type": "phi4mm",
         "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6,
                          "long_factor": LONG_FACTORS},
         "sliding_window": 262144, "num_hidden_layers": 1},
        pre="gpt-4o", files=PHI4_TOKENS, beside=EXTENDED, loras=("speech", "vision"),
        known=PHI3_CLASS, in_transformers=False, prompt=100,
    ),
    "phi4-vision": Animal(
        {**NARROW, **PHI4, "architectures": ["Phi4ForCausalLMV"], "model_type": "phi4-siglip",
         "rope_theta": 500000.0, "original_max_position_embeddings": 512, "sliding_window": None,
         "num_hidden_layers": 1},
        dtype="F32", pre="dbrx", files=PHI4_TOKENS, in_transformers=False,
        beside=("model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
                "model.mm_projector.0.bias"),
    ),
}  # fmt: skip
