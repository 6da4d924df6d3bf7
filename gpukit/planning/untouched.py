"""Which tensors keep their type whatever the file type, as llama-quantize has it."""

from gpukit.formats.gguf_fields import TensorSpec

# By what their name contains.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
# The same for one architecture.
KEPT_IN = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight",
        "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}  # fmt: skip
KEPT_NAMES = ("position_embd.weight", "token_types.weight")


def quantizable(tensor: TensorSpec, arch: str = "") -> bool:
    """Whether a tensor may change its type: a weight of two dimensions that is no exception."""
    dims = [n for n in tensor.ne[1:] if n != 1]
    return (
        bool(dims)
        and tensor.name.endswith("weight")
        and tensor.name not in KEPT_NAMES
        and not any(part in tensor.name for part in (*KEPT, *KEPT_IN.get(arch, ())))
    )
