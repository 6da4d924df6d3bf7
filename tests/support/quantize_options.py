"""Options of llama-quantize on the models of gguf_models.py, each a command line's words.

A case is `MODEL TYPE [OPTION...]`; `--imatrix` without a file stands for the model's importance,
`--keep-split` for a model in parts.
"""

from dataclasses import dataclass

TENSORS_IN_PART = 20

CASES = (
    "eight-layers Q4_K_M --pure",
    "eight-layers Q2_K --pure",
    "eight-layers Q4_0 --pure --imatrix",
    "eight-layers IQ4_XS --pure",
    "eight-layers MXFP4_MOE --pure",
    r"eight-layers Q2_K_S --pure --imatrix --tensor-type blk\.1\.attn_k=Q4_K",
    "eight-layers Q4_K_M --tensor-type ffn_down=Q8_0",
    r"eight-layers Q4_K_M --tensor-type attn_v=q3_K --tensor-type blk\.[01]\.=Q6_K",
    r"eight-layers Q4_K_M --tensor-type blk\.(0|3)\.(attn_v|ffn_down)=Q5_0",
    "eight-layers Q3_K_M --tensor-type attn_output=iq4_nl --tensor-type .*=Q5_1",
    "eight-layers Q5_K_S --tensor-type ffn_(up|gate)=F16 --tensor-type attn_k=F32",
    "eight-layers Q6_K --tensor-type attn_q=mxfp4 --tensor-type token_embd=BF16",
    "eight-layers Q4_K_S --tensor-type ^output=Q4_0 --tensor-type norm=Q8_0",
    r"eight-layers Q4_0 --imatrix --tensor-type blk\.0\.ffn_down=Q2_K",
    "eight-layers IQ4_XS --imatrix --tensor-type attn_v=IQ4_XS",
    "eight-layers Q4_K_M --leave-output-tensor",
    "eight-layers Q4_K_M --output-tensor-type F16",
    "eight-layers Q2_K --output-tensor-type q4_K --token-embedding-type Q3_K",
    "eight-layers Q4_K_M --pure --output-tensor-type Q8_0",
    "eight-layers Q4_K_M --leave-output-tensor --output-tensor-type Q8_0",
    "eight-layers Q4_K_M --token-embedding-type Q8_0 --tensor-type token_embd=Q4_0",
    "eight-layers F16 --output-tensor-type Q8_0",
    "eight-layers BF16 --token-embedding-type q4_k",
    "eight-layers F32 --leave-output-tensor",
    "tied Q4_K_M --output-tensor-type Q8_0",
    "tied Q4_K_M --output-tensor-type Q8_0 --token-embedding-type Q5_K",
    "tied Q4_K_M --output-tensor-type Q8_0 --tensor-type embd=Q4_0",
    "tied Q4_K_M --pure --output-tensor-type Q8_0",
    "tied MXFP4_MOE --output-tensor-type Q6_K",
    "tied F16 --output-tensor-type Q8_0",
    "tied Q3_K_L --leave-output-tensor",
    "width-288 Q4_K_M --pure",
    "width-288 Q8_0 --tensor-type attn_v=Q6_K --tensor-type attn_k=iq4_xs",
    "width-288 Q4_K_M --output-tensor-type Q5_1 --token-embedding-type IQ4_NL",
    "width-100 Q4_K_M --output-tensor-type F32",
    "eight-experts Q4_K_M --pure",
    "eight-experts Q4_K_M --tensor-type ffn_down_exps=Q3_K --tensor-type attn_k=Q4_0",
    r"eight-experts Q4_K_M --imatrix --tensor-type blk\.[0-3]\.ffn_.*_exps=Q4_1",
    "eight-experts MXFP4_MOE --tensor-type ffn_up_exps=Q5_K",
    r"seventy-b Q4_K_M --tensor-type blk\.1[0-9]\.attn_v=Q8_0",
    r"thirty-two-layers Q4_K_M --tensor-type blk\.(0|5|9)\.(attn_v|ffn_down)=Q2_K",
    r"fused-qkv Q4_K_M --tensor-type blk\.2\.attn_qkv=Q5_0",
    "falcon Q4_K_M --output-tensor-type Q6_K",
    "shared-by-four IQ4_NL --pure --imatrix",
    "eight-layers Q4_K_M --keep-split --tensor-type attn_v=Q8_0",
    "eight-layers Q2_K --keep-split --pure --imatrix",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The words of a case, taken apart."""

    model: str
    type: str
    patterns: tuple[str, ...]
    pure: bool
    leave_output: bool
    output_type: str | None
    embedding_type: str | None
    imatrix: bool
    keep_split: bool


def parse(text: str) -> Case:
    """The case that `text` says."""
    model, kind, *words = text.split()
    values: dict[str, list[str]] = {}
    while words:
        option = words.pop(0)
        takes = option.endswith("-type")
        values.setdefault(option, []).append(words.pop(0) if takes else "")
    case = Case(
        model,
        kind,
        tuple(values.pop("--tensor-type", ())),
        "--pure" in values,
        "--leave-output-tensor" in values,
        *(values.get(f"--{name}-type", [None])[0] for name in ("output-tensor", "token-embedding")),
        "--imatrix" in values,
        "--keep-split" in values,
    )
    known = {"--pure", "--leave-output-tensor", "--imatrix", "--keep-split"}
    known |= {"--output-tensor-type", "--token-embedding-type"}
    assert values.keys() <= known, text
    return case
