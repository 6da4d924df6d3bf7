"""Which type each tensor gets: the worked results of llama-quantize's rules."""

from collections.abc import Callable
from typing import Any

import pytest

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import FILE_TYPES, file_type_of
from gpukit.formats.gguf_fields import TensorSpec
from gpukit.planning.mixes import choose_types, output_order
from gpukit.planning.overrides import make_overrides
from gpukit.planning.untouched import quantizable


def model(
    layers: int, *, tied: bool = False, width: int = 256, experts: int = 0, arch: str = "llama"
) -> tuple[list[TensorSpec], Callable[[str, Any], Any]]:
    names = ["token_embd.weight"] + ([] if tied else ["output.weight"])
    for i in range(layers):
        parts = ["attn_q", "attn_k", "attn_v", "attn_output"]
        parts += ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp"] if experts else [
            "ffn_gate", "ffn_up", "ffn_down"]  # fmt: skip
        names += [f"blk.{i}.{part}.weight" for part in parts] + [f"blk.{i}.attn_norm.weight"]
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": layers,
        f"{arch}.attention.head_count": 32,
        f"{arch}.attention.head_count_kv": 8,
        f"{arch}.expert_count": experts,
    }
    specs = [
        TensorSpec(name, (width,) if "norm" in name else (width, 64), "BF16")
        for name in sorted(names, key=output_order)
    ]
    return specs, lambda key, default: metadata.get(key, default)


def types(kind: str, *args: Any, **how: Any) -> dict[str, str]:
    specs, metadata = model(*args, **how)
    chosen = choose_types(specs, metadata, FILE_TYPES[kind])
    return {spec.name: found for spec, found in zip(specs, chosen, strict=True)}


def layers_with(found: dict[str, str], part: str, kind: str) -> list[int]:
    return [
        int(name.split(".")[1])
        for name, chosen in found.items()
        if f".{part}.weight" in name and chosen == kind
    ]


def test_eight_layers_q4_k_m() -> None:
    found = types("Q4_K_M", 8)
    assert layers_with(found, "attn_v", "Q6_K") == [0, 3, 6, 7]
    assert layers_with(found, "ffn_down", "Q6_K") == [0, 3, 6, 7]
    assert found["output.weight"] == "Q6_K"
    assert found["token_embd.weight"] == "Q4_K"
    assert found["blk.0.attn_norm.weight"] == "BF16"


def test_thirty_two_layers_q4_k_m() -> None:
    wanted = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers_with(types("Q4_K_M", 32), "attn_v", "Q6_K") == wanted


def test_q4_k_s_and_the_rest() -> None:
    found = types("Q4_K_S", 16)
    assert layers_with(found, "attn_v", "Q5_K") == [0, 1, 2, 3]
    assert layers_with(found, "ffn_down", "Q5_K") == [0, 1]
    assert set(types("Q6_K", 4).values()) == {"Q6_K", "BF16"}
    assert set(types("Q8_0", 4).values()) == {"Q8_0", "BF16"}
    found = types("Q4_0", 4)
    assert found.pop("output.weight") == "Q6_K"
    assert set(found.values()) == {"Q4_0", "BF16"}


def test_tied_embeddings_take_the_output_rule() -> None:
    assert types("Q4_K_M", 2, tied=True)["token_embd.weight"] == "Q6_K"


def test_eight_experts() -> None:
    found = types("Q4_K_M", 8, experts=8)
    assert found["blk.1.attn_k.weight"] == found["blk.1.attn_v.weight"] == "Q8_0"
    assert found["blk.1.attn_output.weight"] == "Q5_K"
    assert found["blk.1.ffn_gate_inp.weight"] == "BF16"
    assert layers_with(found, "ffn_down_exps", "Q6_K") == [0, 3, 6, 7]


def test_70b_lifts_values() -> None:
    assert layers_with(types("Q4_K_S", 80), "attn_v", "Q5_K") == list(range(80))


def test_nvfp4_keeps_the_ends_at_q8_0() -> None:
    found = types("NVFP4", 2)
    assert {found["output.weight"], found["token_embd.weight"]} == {"Q8_0"}
    assert layers_with(found, "ffn_down", "NVFP4") == [0, 1]
    assert layers_with(found, "attn_v", "NVFP4") == [0, 1]
    assert types("NVFP4", 1, width=288)["blk.0.ffn_down.weight"] == "IQ4_NL"


def test_widths_that_blocks_do_not_divide() -> None:
    found = types("Q4_K_M", 8, width=288)
    assert found["blk.1.attn_q.weight"] == "Q5_0"
    assert found["blk.0.attn_v.weight"] == "Q8_0"
    assert found["output.weight"] == "Q8_0"
    assert types("Q4_K_M", 1, width=100)["blk.0.attn_q.weight"] == "F16"


@pytest.mark.parametrize(
    ("name", "ne", "yes"),
    [
        ("blk.0.ffn_up.weight", (32, 2), True),
        ("blk.0.ffn_up.weight", (32, 1), False),
        ("blk.0.ffn_up.weight", (32, 1, 4), True),
        ("blk.0.ffn_up.bias", (32, 2), False),
        ("blk.0.attn_q_norm.weight", (32, 2), False),
        ("position_embd.weight", (32, 2), False),
        ("blk.0.ssm_conv1d.weight", (32, 2), False),
    ],
)
def test_what_may_be_quantised(name: str, ne: tuple[int, ...], yes: bool) -> None:
    assert quantizable(TensorSpec(name, ne, "F32")) is yes


def test_overrides() -> None:
    specs, metadata = model(8)

    def chosen(*patterns: str, **how: Any) -> dict[str, str]:
        overrides = make_overrides(patterns, **how)
        found = choose_types(specs, metadata, FILE_TYPES["Q4_K_M"], overrides)
        return {spec.name: kind for spec, kind in zip(specs, found, strict=True)}

    found = chosen("ffn_down=q8_0", r"blk\.[01]\.=Q6_K")
    assert found["blk.0.ffn_down.weight"] == "Q8_0"
    assert found["blk.0.attn_q.weight"] == "Q6_K"
    assert found["blk.2.attn_q.weight"] == "Q4_K"
    assert set(chosen(pure=True).values()) == {"Q4_K", "BF16"}
    assert chosen(leave_output=True)["output.weight"] == "BF16"
    assert chosen(output_type="F16", embedding_type="Q8_0")["token_embd.weight"] == "Q8_0"
    assert make_overrides([]) is None


def test_the_embeddings_of_layers_follow_a_pattern_that_names_them() -> None:
    specs = [
        TensorSpec(f"{part}token_embd.weight", (256, 64), "BF16") for part in ("", "per_layer_")
    ]
    get: Callable[[str, Any], Any] = lambda _key, default: default  # noqa: E731
    overrides = make_overrides(["per_layer=Q5_1"], embedding_type="Q8_0")
    assert choose_types(specs, get, FILE_TYPES["Q4_K_M"], overrides) == ["Q8_0", "Q5_1"]
    overrides = make_overrides(["^token_embd=Q5_1"], embedding_type="Q8_0")
    assert choose_types(specs, get, FILE_TYPES["Q4_K_M"], overrides) == ["Q8_0", "Q8_0"]


def test_an_output_type_of_tied_embeddings_gives_way_to_shapes() -> None:
    specs, metadata = model(1, tied=True, width=288)
    overrides = make_overrides([], output_type="Q4_K")
    found = choose_types(specs, metadata, FILE_TYPES["Q8_0"], overrides)
    assert dict(zip((s.name for s in specs), found, strict=True))["token_embd.weight"] == "Q5_0"


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["ffn_down"], "REGEX=TYPE is needed"),
        (["=Q8_0"], "REGEX=TYPE is needed"),
        (["(=Q8_0"], "no regular expression"),
        (["a{99999999999999}=Q8_0"], "no regular expression"),
        (["a=Q9"], "unknown tensor type 'Q9'; known: F32"),
        (["a=q1_0"], "unknown tensor type 'q1_0'; known: F32"),
    ],
)
def test_bad_overrides(patterns: list[str], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        make_overrides(patterns)


def test_names_of_file_types() -> None:
    assert file_type_of("q4_k").name == "Q4_K_M"
    assert file_type_of("q5_K_s").name == "Q5_K_S"
    with pytest.raises(ArgumentError, match=r"unknown type 'Q9_K'; known: F32, .*Q4_K_M"):
        file_type_of("Q9_K")


def test_the_lowest_file_types() -> None:
    # As llama-quantize chooses them with importance: whole files are compared in test_quantized.
    found = types("IQ1_S", 16)
    assert layers_with(found, "attn_v", "Q4_K") == list(range(16))
    assert layers_with(found, "ffn_down", "Q2_K") == [0, 1]
    assert layers_with(found, "attn_output", "IQ2_XXS") == list(range(16))
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q5_K", "Q2_K")
    found = types("IQ2_M", 8, experts=8)
    assert layers_with(found, "attn_k", "Q4_K") == list(range(8))
    assert layers_with(found, "attn_output", "Q5_K") == list(range(8))
    assert types("IQ2_S", 8)["blk.3.attn_q.weight"] == "IQ2_XS"
    found = types("IQ3_XS", 16)
    assert layers_with(found, "ffn_gate", "IQ3_S") == [0, 1, 14, 15]
    assert layers_with(found, "attn_q", "IQ3_XXS") == list(range(16))
    assert types("TQ2_0", 2)["token_embd.weight"] == "Q4_K"


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ2_M", "IQ3_XXS", "IQ3_S", "TQ1_0"])
def test_rows_that_low_types_do_not_divide(kind: str) -> None:
    found = types(kind, 8, width=288)
    assert found["blk.3.attn_q.weight"] == ("Q4_0" if kind == "TQ1_0" else "IQ4_NL")
    assert found["output.weight"] == "Q8_0"
    assert types(kind, 8, width=100)["blk.3.attn_q.weight"] == "F16"
