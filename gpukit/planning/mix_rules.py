"""What llama-quantize gives which tensors, as data.

The rules are those of src/llama-quant.cpp of `gpukit_kernels.facts.MATCHED`. A new file type is a
row in `FILE_TYPES` and, where it deviates from its default type, rows in the tables below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gpukit.formats.file_types import FileType


@dataclass
class Mix:
    """The facts of a model that rules look at, and how many tensors of a kind have gone by."""

    file_type: FileType
    arch: str
    n_layer: int
    n_v: int
    n_expert: int
    gqa: int
    tied: bool
    is_70b: bool
    importance: bool
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def falcon(self) -> bool:
        return self.arch == "falcon"


# Kinds of tensors by what their name contains; the first that fits counts.
KINDS = (
    ("attn_qkv.weight", "v"),
    ("attn_kv_b.weight", "v"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "o"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"
ENDS = (*EMBEDDINGS, OUTPUT)

# Where a rule applies: i of n tensors of the kind have gone by.
WHERE: Mapping[str, Callable[[Mix, int, int], bool]] = {
    "everywhere": lambda _mix, _i, _n: True,
    "first two": lambda _mix, i, _n: i < 2,
    "first four": lambda _mix, i, _n: i < 4,
    "first eighth": lambda _mix, i, n: i < n // 8,
    "first sixteenth": lambda _mix, i, n: i < n // 16,
    "more": lambda _mix, i, n: i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2,
    "shared by four": lambda mix, _i, _n: mix.gqa >= 4,
    "shared by four, or four experts": lambda mix, _i, _n: mix.gqa >= 4 or mix.n_expert >= 4,
    "between the outer eighths": lambda _mix, i, n: n // 8 <= i < 7 * n // 8,
    "not weighted": lambda mix, _i, _n: not mix.importance,
    "more, of eight experts": lambda mix, i, n: mix.n_expert == 8 and WHERE["more"](mix, i, n),
    "first eighth, weighted": lambda mix, i, n: mix.importance and i < n // 8,
    "first eighth, not weighted": lambda mix, i, n: not mix.importance and i < n // 8,
}

# The file types below three bits, most of which have rules of their own.
LOWEST = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_BELOW_IQ2_S, _FROM_IQ2_S = LOWEST[:4], LOWEST[4:]
_LOWEST_O = {
    **dict.fromkeys(("IQ1_S", "IQ1_M"), (("everywhere", "IQ2_XXS"),)),
    **dict.fromkeys(_FROM_IQ2_S, (("everywhere", "IQ3_S"),)),
}
_IQ3_QK = {"IQ3_XS": (("everywhere", "IQ3_XXS"),), "IQ3_XXS": (("everywhere", "IQ2_S"),)}
_IQ3_XS_FEED = {"IQ3_XS": (("between the outer eighths", "IQ3_XXS"),)}

# Kind -> file type -> (where, type), the first that applies; elsewhere the default type.
RULES: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
    "v": {
        "Q2_K": (("shared by four", "Q4_K"), ("everywhere", "Q3_K")),
        "Q2_K_S": (("shared by four", "Q4_K"),),
        "Q3_K_M": (("first two", "Q5_K"), ("everywhere", "Q4_K")),
        "Q3_K_L": (("everywhere", "Q5_K"),),
        "Q4_K_S": (("first four", "Q5_K"),),
        "Q4_K_M": (("more", "Q6_K"),),
        "Q5_K_M": (("more", "Q6_K"),),
        "IQ4_NL": (("shared by four", "Q5_K"),),
        "IQ4_XS": (("shared by four", "Q5_K"),),
        "IQ3_XXS": (("shared by four", "Q4_K"), ("not weighted", "IQ3_S")),
        **dict.fromkeys(("IQ3_XS", "IQ3_S"), (("shared by four", "Q4_K"),)),
        "IQ3_M": (("everywhere", "Q4_K"),),
        **dict.fromkeys(
            _BELOW_IQ2_S, (("shared by four, or four experts", "Q4_K"), ("everywhere", "Q2_K"))
        ),
        **dict.fromkeys(
            _FROM_IQ2_S, (("shared by four, or four experts", "Q4_K"), ("everywhere", "IQ3_S"))
        ),
    },
    "down": {
        "Q4_0": (("first eighth, weighted", "Q4_1"),),
        "Q5_0": (("first eighth, weighted", "Q5_1"),),
        "Q2_K": (("everywhere", "Q3_K"),),
        "Q2_K_S": (("first eighth", "Q4_K"),),
        "Q3_K_M": (("first sixteenth", "Q5_K"), ("everywhere", "Q4_K")),
        "Q3_K_L": (("everywhere", "Q5_K"),),
        "Q4_K_S": (("first eighth", "Q5_K"),),
        "Q4_K_M": (("more", "Q6_K"),),
        "Q5_K_M": (("more", "Q6_K"),),
        "IQ4_NL": (("first eighth, not weighted", "Q5_K"),),
        "IQ4_XS": (("first eighth, not weighted", "Q5_K"),),
        "IQ3_XXS": (("first eighth, not weighted", "Q4_K"), ("not weighted", "Q3_K")),
        "IQ3_M": (("first eighth", "Q4_K"), ("more, of eight experts", "Q4_K")),
        **dict.fromkeys(_BELOW_IQ2_S, (("first eighth", "Q2_K"),)),
        **dict.fromkeys(_FROM_IQ2_S, (("first eighth", "IQ3_S"),)),
    },
    "o": {
        "Q2_K": (("everywhere", "Q3_K"),),
        "Q3_K_M": (("everywhere", "Q4_K"),),
        "Q3_K_L": (("everywhere", "Q5_K"),),
        "IQ3_XXS": (("everywhere", "IQ3_S"),),
        "IQ3_M": (("everywhere", "Q4_K"),),
        **_LOWEST_O,
    },
    "q": _IQ3_QK,
    "k": _IQ3_QK,
    "gate": _IQ3_XS_FEED,
    "up": _IQ3_XS_FEED,
}
FALCON_RULES: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
    **RULES,
    "down": {
        **RULES["down"],
        "Q3_K_M": (("first sixteenth", "Q5_K"), ("more", "Q4_K")),
        "Q3_K_L": (("everywhere", "Q4_K"),),
        "Q4_K_S": (),
        "Q4_K_M": (("first sixteenth", "Q6_K"), ("more", "Q5_K")),
    },
    "o": {"Q3_K_L": (("everywhere", "Q4_K"),), **_LOWEST_O},
}
# File types that lift the attention outputs of models with eight experts to Q5_K.
EIGHT_EXPERTS_O = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip
# What the lowest file types lift in models with eight experts.
LOWEST_OF_EIGHT = {"k": "Q4_K", "o": "Q5_K"}
# Outputs are Q6_K but for these, embeddings the default type but for those.
# llama-quantize has no NVFP4: the ends are as in its mix for MXFP4, all others the default.
OUTPUT_TYPES = {**dict.fromkeys((*LOWEST, "IQ3_XXS"), "Q5_K"), "NVFP4": "Q8_0"}
EMBEDDING_TYPES = {
    **dict.fromkeys(_BELOW_IQ2_S, "Q2_K"),
    **dict.fromkeys((*_FROM_IQ2_S, "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
    "NVFP4": "Q8_0",
}
# Types that are never made without importance, but for the ends of a model.
WANT_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
# Architectures with a model of this many layers that llama.cpp calls 70B.
LAYERS_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
# Attention values of 70B Llamas, whose eight heads share them, are lifted from these types.
LIFTED_70B = {"Q3_K": "Q5_K", "Q4_K": "Q5_K"}

# What takes a type's place where its blocks do not divide the rows; behind these F16.
FALLBACKS = {
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    "NVFP4": "IQ4_NL",  # llama-quantize gives up there
}

# Tensors of one architecture that are never less than Q8_0.
AT_LEAST_Q8_0 = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
