"""GGUF models of several shapes, quantised to every file type, against llama-quantize's files."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import gguf_models
from support.checkpoints import DATA
from support.zoo import ZOO
from support.zoo_build import build

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError
from gpukit.formats.file_types import FILE_TYPES
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.again import plan_again
from gpukit.planning.mix_rules import WANT_IMPORTANCE
from gpukit.planning.overrides import make_overrides
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GOLDEN: dict[str, dict[str, list[str | None]]] = json.loads(
    (DATA / "golden" / "quantized.json").read_text()
)


def test_every_model_and_type_has_digests() -> None:
    assert GOLDEN.keys() == gguf_models.SHAPES.keys()
    # llama-quantize has no such mix.
    wanted = FILE_TYPES.keys() - {"NVFP4"}
    assert all(kinds.keys() == wanted for kinds in GOLDEN.values())


# File types of codebooks, whose search takes long; one model stands for the others.
SLOW = {kind for kind in FILE_TYPES if kind.startswith(("IQ1", "IQ2", "IQ3"))}
ONE = "eight-experts"
MODELS = pytest.mark.parametrize(
    ("name", "slow"),
    [
        *[(name, False) for name in gguf_models.SHAPES],
        (ONE, True),
        *[
            pytest.param(name, True, marks=pytest.mark.thorough)
            for name in gguf_models.SHAPES
            if name != ONE
        ],
    ],
)


def wanted_of(name: str, slow: bool) -> dict[str, list[str | None]]:
    return {kind: found for kind, found in GOLDEN[name].items() if (kind in SLOW) == slow}


@pytest.mark.sampled(2)
@MODELS
def test_files_equal_those_of_llama_quantize(name: str, slow: bool, tmp_path: Path) -> None:
    model = gguf_models.build(name, tmp_path)
    different = []
    for kind, (wanted, _) in wanted_of(name, slow).items():
        if wanted is None:
            continue
        with open_source(model) as source:
            plan = plan_quantize(source, kind)
            if run_plan(source, plan, tmp_path / "out.gguf", digest=True).digest != wanted:
                different.append(kind)
    assert not different


@pytest.mark.sampled(3)
@MODELS
def test_tensors_equal_those_of_llama_quantize_with_importance(
    name: str, slow: bool, tmp_path: Path
) -> None:
    model = gguf_models.build(name, tmp_path)
    imatrices = [
        Imatrix(tmp_path / "x.imatrix", gguf_models.importance(name, whole))
        for whole in (False, True)
    ]
    different = []
    for kind, (_, wanted) in wanted_of(name, slow).items():
        options = Options(imatrix=imatrices[kind in gguf_models.WANTING])
        out = tmp_path / "out.gguf"
        with open_source(model) as source:
            if wanted is None:  # where llama-quantize refuses a line is told
                (line,) = plan_quantize(source, kind, options).warnings
                assert "wants importance: Q2_K without it, as in Q2_K" in line
                continue
            run_plan(source, plan_quantize(source, kind, options), out)
        if gguf_models.tensors_digest(out) != wanted:
            different.append(kind)
    assert not different


def test_what_an_importance_matrix_lacks_is_quantised_without_it(tmp_path: Path) -> None:
    name, model = "blk.1.ffn_up.weight", gguf_models.build("eight-layers", tmp_path)
    entries = gguf_models.importance("eight-layers")
    with GGUFFile(model) as file:
        entries |= {
            n: np.ones(t.ne[0], np.float32)
            for n, t in file.tensors.items()
            if len(t.ne) > 1 and n.startswith("blk.") and n not in entries
        }
    del entries[name]
    made = {}
    for kind, imatrix in (("Q2_K_S", Imatrix(Path("i.dat"), entries)), ("Q2_K", None)):
        with open_source(model) as source:
            plan = plan_quantize(source, kind, Options(imatrix=imatrix))
            run_plan(source, plan, tmp_path / kind)
        with GGUFFile(tmp_path / kind) as file:
            made[kind] = file.read(file.tensors[name]).tobytes()
        if imatrix is not None:
            assert plan.warnings == (
                f"i.dat has nothing on 1 tensor ({name}), for which Q2_K_S wants importance: Q2_K "
                "without it, as in Q2_K",
            )
    assert made["Q2_K_S"] == made["Q2_K"]


def test_what_no_pass_uses_has_an_importance_of_1(tmp_path: Path) -> None:
    """Nothing can come to keys and values that a layer has of another one, nor to layers that guess
    further tokens."""
    unused = {
        "gemma4-e2b": {f"blk.{layer}.attn_{kind}.weight" for layer in (4, 5) for kind in "kv"},
        "glm4-moe": {"blk.2.nextn.eh_proj.weight"},
    }
    for model, names in unused.items():
        with open_source(build(model, tmp_path), ZOO[model].pre) as source:
            entries = {
                t.name: np.full(t.ne[0] * (t.ne[2] if len(t.ne) > 2 else 1), 2, np.float32)
                for t in source.tensors
                if len(t.ne) > 1 and t.name.startswith("blk.") and t.name not in names
            }
            imatrix = Imatrix(Path("i.dat"), entries)
            for kind in WANT_IMPORTANCE:
                pure = make_overrides((), pure=True, output_type="Q6_K", embedding_type="Q4_K")
                plan = plan_quantize(source, kind, Options(imatrix=imatrix, overrides=pure))
                again = plan_again(source, plan.specs, imatrix)
                for outputs in (plan.outputs, again.outputs):
                    found = {o.spec.name: o.importance for o in outputs}
                    assert all(np.all(found[name] == 1) for name in names)
                told = f"i.dat has nothing on {len(names)} tensor"
                (line,) = (w for w in plan.warnings if w.startswith(told))
                assert "which no pass uses: quantised with an importance of 1 for each" in line


def test_q2_k_s_asks_for_importance(tmp_path: Path) -> None:
    refused = [name for name, kinds in GOLDEN.items() if kinds["Q2_K_S"][0] is None]
    assert "eight-layers" in refused
    with (
        open_source(gguf_models.build("eight-layers", tmp_path)) as source,
        pytest.raises(ArgumentError, match="give --imatrix FILE, or choose Q2_K"),
    ):
        plan_quantize(source, "Q2_K_S")


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ3_XS"])
def test_low_types_ask_for_importance(kind: str, tmp_path: Path) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    with (
        open_source(model) as source,
        pytest.raises(ArgumentError, match=rf"{kind} needs importance weights.* --imatrix"),
    ):
        plan_quantize(source, kind)
    lacking = Imatrix(Path("i.dat"), gguf_models.importance("eight-layers"))
    with (
        open_source(model) as source,
        pytest.raises(ArgumentError, match=r"i\.dat has nothing on blk\.1\.attn_k\.weight, and IQ"),
    ):
        plan_quantize(source, kind, Options(imatrix=lacking))


def test_an_end_of_a_model_has_no_blocks_without_importance(tmp_path: Path) -> None:
    model = gguf_models.build("eight-layers", tmp_path)
    overrides = make_overrides((), embedding_type="IQ1_S")
    with (
        open_source(model) as source,
        pytest.raises(ArgumentError, match=r"token_embd\.weight: Q4_K_M needs importance .* IQ1_S"),
    ):
        plan_quantize(source, "Q4_K_M", Options(overrides=overrides))
