"""File types: what general.file_type can say, and what the float ones mean for each tensor.

A new one is a row in `FILE_TYPES` and, where it deviates from its default type, rows in
planning/mix_rules.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gpukit.errors import ArgumentError, did_you_mean
from gpukit.formats.gguf_fields import FLOATS, Field, type_sizes
from gpukit.given import text_of, texts_of

FILE_TYPE = "general.file_type"
# Of the block layouts (GGML_QNT_VERSION).
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class FileType:
    """One file type: its name, its number in general.file_type, the type of most tensors."""

    name: str
    number: int
    default: str

    @property
    def is_float(self) -> bool:
        return self.default in FLOATS


FILE_TYPES = {
    row.name: row
    for row in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q2_K_S", 21, "Q2_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("IQ1_S", 24, "IQ1_S"),
        FileType("IQ1_M", 31, "IQ1_M"),
        FileType("IQ2_XXS", 19, "IQ2_XXS"),
        FileType("IQ2_XS", 20, "IQ2_XS"),
        FileType("IQ2_S", 28, "IQ2_XS"),
        FileType("IQ2_M", 29, "IQ2_S"),
        FileType("IQ3_XXS", 23, "IQ3_XXS"),
        FileType("IQ3_XS", 22, "IQ3_S"),
        FileType("IQ3_S", 26, "IQ3_S"),
        FileType("IQ3_M", 27, "IQ3_S"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
        FileType("TQ1_0", 36, "TQ1_0"),
        FileType("TQ2_0", 37, "TQ2_0"),
        FileType("MXFP4_MOE", 38, "MXFP4"),
        FileType("NVFP4", 39, "NVFP4"),
    )
}


# File types that llama.cpp's converter writes itself, in its own order of tensors and metadata.
CONVERTED = ("F32", "F16", "BF16", "Q8_0")
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def file_type_of(name: str) -> FileType:
    """The file type of `name` in any case; `ArgumentError` lists the known ones."""
    upper = text_of(name, "a type such as 'Q4_K_M'").upper()
    row = FILE_TYPES.get(ALIASES.get(upper, upper))
    if row is None:
        known = [*FILE_TYPES, *ALIASES]
        raise ArgumentError(
            f"unknown type {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"
        )
    return row


def listed_types(types: Iterable[str]) -> tuple[str, ...]:
    """The words of `types`, which may be gone over only once; `ArgumentError` for what is no list,
    such as one word."""
    return texts_of(types, "types: a list such as ['Q8_0']")


# Numbers of file types that gpukit reads and does not write, from llama.cpp's llama.h.
READ_ONLY = {40: "Q1_0", 41: "Q2_0", 1024: "GUESSED"}
_NAMES = {**READ_ONLY, **{row.number: row.name for row in FILE_TYPES.values()}}


def file_type_name(number: object) -> str:
    """The name of `general.file_type`: `Q4_K_M`. Ollama reads 0 (all F32) as `unknown` too."""
    return _NAMES.get(number, "unknown") if isinstance(number, int) and number else "unknown"


def with_file_type(fields: Sequence[Field], number: int) -> tuple[Field, ...]:
    """`fields` with general.file_type set to llama.cpp's file type `number`, where it stands."""
    return tuple(replace(f, value=number) if f.key == FILE_TYPE else f for f in fields)


# Tensors that stay float32 in a converted file whatever its type (routers).
_ALWAYS_F32 = (".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight", ".ssm_conv1d.weight")


def float_type(name: str, ne: Sequence[int], wanted: str) -> str:
    """The type of a tensor in a file converted to F32, F16, BF16 or Q8_0, as llama.cpp decides.

    One dimension, norms, routers and what is no weight stay F32; rows that blocks do not divide
    fall back to F16.
    """
    if len(ne) <= 1 or name.endswith("_norm.weight") or name.endswith(_ALWAYS_F32):
        return "F32"
    if not name.endswith(".weight"):
        return "F32"
    return wanted if ne[0] % type_sizes()[wanted].block == 0 else "F16"
