"""The table of quant types against gguf-py's and llama.cpp's."""

import subprocess
import sys

import gguf
import pytest
from support import quant_kinds

from gpukit_kernels import QUANTS, QuantError, by_id, by_name


@pytest.mark.parametrize("name", QUANTS)
def test_row_agrees_with_gguf(name: str) -> None:
    row = QUANTS[name]
    kind = gguf.GGMLQuantizationType[name]
    assert (row.name, row.id) == (name, kind.value)
    assert (row.block, row.nbytes) == gguf.constants.GGML_QUANT_SIZES[kind]


@pytest.mark.peer
@pytest.mark.parametrize("name", QUANTS)
def test_row_agrees_with_peer(name: str) -> None:
    row = QUANTS[name]
    for n in (0, 256, 768, 4096):
        assert row.row_bytes(n) == quant_kinds.need_peer().row_bytes(row.id, n)


def test_the_types_of_this_version() -> None:
    assert all(row.encodable for row in QUANTS.values())
    needing = {name for name, row in QUANTS.items() if row.facts.needs_importance}
    assert needing == {"IQ2_XXS", "IQ2_XS", "IQ1_S"}
    assert set(QUANTS) >= {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q5_K", "Q6_K"}


@pytest.mark.parametrize("name", QUANTS)
def test_lookup(name: str) -> None:
    row = QUANTS[name]
    assert by_name(name.lower()) is by_name(name) is by_name(row) is by_id(row.id) is row


@pytest.mark.parametrize("name", ["Q4_KM", "", "q4_k "])
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(QuantError, match=r"unknown quant type .*; known: F32, .*Q6_K"):
        by_name(name)


def test_unknown_id_lists_the_known() -> None:
    with pytest.raises(QuantError, match="no quant type with id 99; known: F32"):
        by_id(99)


def test_row_that_blocks_do_not_divide() -> None:
    with pytest.raises(QuantError, match=r"^rows of 100 are no multiple of 32 \(Q4_0\)$"):
        by_name("Q4_0").row_bytes(100)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("module", ["quants.bf16", "quants.q4_k", "ops"])
def test_whatever_is_imported_first(module: str) -> None:
    code = f"import gpukit_kernels.{module}; from gpukit_kernels import QUANTS; assert QUANTS"
    subprocess.run([sys.executable, "-c", code], check=True)
