"""Options that choose types: against llama-quantize, and what is said of those without effect."""

import json
from pathlib import Path

import pytest
from support import gguf_models
from support.checkpoints import DATA, build
from support.quantize_options import CASES, TENSORS_IN_PART, parse

from gpukit.conversion.run import run_plan
from gpukit.errors import ArgumentError
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.overrides import make_overrides
from gpukit.planning.plan import Options
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

GOLDEN: dict[str, list[str]] = json.loads((DATA / "golden" / "options.json").read_text())


def test_every_case_has_digests() -> None:
    assert GOLDEN.keys() == set(CASES)
    assert [len(found) > 1 for found in GOLDEN.values()] == ["--keep-split" in c for c in GOLDEN]


@pytest.mark.parametrize("text", CASES)
def test_tensors_equal_those_of_llama_quantize(text: str, tmp_path: Path) -> None:
    case = parse(text)
    parts = TENSORS_IN_PART if case.keep_split else 0
    model = gguf_models.build(case.model, tmp_path, parts)
    entries = gguf_models.importance(case.model)
    options = Options(
        make_overrides(
            case.patterns,
            pure=case.pure,
            leave_output=case.leave_output,
            output_type=case.output_type,
            embedding_type=case.embedding_type,
        ),
        Imatrix(tmp_path / "x.imatrix", entries) if case.imatrix else None,
        keep_split=case.keep_split,
    )
    with open_source(model) as source:
        result = run_plan(source, plan_quantize(source, case.type, options), tmp_path / "out.gguf")
    assert [gguf_models.tensors_digest(path) for path in result.paths] == GOLDEN[text]


def warnings(model: Path, kind: str, *patterns: str, **how: object) -> list[str]:
    with open_source(model) as source:
        overrides = make_overrides(patterns, **how)  # type: ignore[arg-type]
        return list(plan_quantize(source, kind, Options(overrides)).warnings)


def test_options_without_effect_are_told(tmp_path: Path) -> None:
    model = gguf_models.build("tied", tmp_path)
    nothing = "fits none of the 18 tensors; --dry-run shows their names"
    assert warnings(model, "Q8_0", "attn_v=Q4_0", "ffn_dwon=Q6_K") == [
        f"--tensor-type ffn_dwon=Q6_K changes nothing: {nothing}"
    ]
    assert warnings(model, "Q8_0", leave_output=True) == [
        f"--leave-output-tensor changes nothing: {nothing}"
    ]
    assert warnings(model, "Q4_K_M", pure=True, output_type="Q8_0") == [
        f"--output-tensor-type changes nothing: {nothing}"
    ]
    (line,) = warnings(model, "Q8_0", "attn_v=Q4_0", r"blk\.0\.attn_v=Q6_K")
    assert line.startswith(
        r"--tensor-type blk\.0\.attn_v=Q6_K changes nothing: what it fits, 1 tensor "
        "(blk.0.attn_v.weight), stays as it is or follows another option"
    )
    (line,) = warnings(model, "Q8_0", "attn_norm=Q4_0")
    assert "2 tensors (blk.0.attn_norm.weight, blk.1.attn_norm.weight), stays as it is" in line
    assert warnings(model, "Q8_0", "attn_v=Q8_0", embedding_type="F16") == []
    model = gguf_models.build("width-100", tmp_path)
    line, *_ = warnings(model, "Q8_0", leave_output=True, output_type="F16")
    assert line.startswith("--output-tensor-type changes nothing: what it fits, 1 tensor (output.")


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_patterns_win_over_float_types_too(kind: str, tmp_path: Path) -> None:
    # llama-quantize takes no notice of them there.
    model, folder = gguf_models.build("tied", tmp_path), build("plain", tmp_path)
    for path in (model, folder):
        with open_source(path) as source:
            plan = plan_quantize(source, kind, Options(make_overrides(["attn_v=Q4_0"])))
        found = {o.spec.name: o.spec.type for o in plan.outputs}
        assert found["blk.1.attn_v.weight"] == "Q4_0"
        assert found["blk.1.attn_q.weight"] == kind
        assert not plan.warnings


def test_types_whose_blocks_do_not_fit(tmp_path: Path) -> None:
    model = gguf_models.build("width-100", tmp_path)
    with open_source(model) as source:
        for how, option, name in (
            ({"output_type": "Q6_K"}, "--output-tensor-type", "output.weight"),
            ({"embedding_type": "q6_k"}, "--token-embedding-type", "token_embd.weight"),
        ):
            with pytest.raises(ArgumentError) as caught:
                plan_quantize(source, "Q8_0", Options(make_overrides([], **how)))  # type: ignore[arg-type]
            assert str(caught.value) == (
                f"{option} Q6_K: {name}: rows of 100 are no multiple of 256; choose another: F16"
            )
        plan = plan_quantize(source, "F32", Options(make_overrides(["attn_v=Q6_K"])))
    assert plan.warnings == (
        "1 tensor (blk.0.attn_v.weight): rows of 100 are no multiple of 256, F16 instead of Q6_K",
    )


def test_matrices_that_nothing_came_to_are_told(tmp_path: Path) -> None:
    model = gguf_models.build("eight-experts", tmp_path)
    entries = gguf_models.importance("eight-experts")
    silent = {"blk.0.ffn_up_exps.weight": 2, "blk.1.ffn_down_exps.weight": 1, "gone.weight": 5}
    with open_source(model) as source:
        imatrix = Imatrix(Path("i.gguf"), entries, silent=silent)
        warnings = plan_quantize(source, "Q4_K_M", Options(imatrix=imatrix)).warnings
    assert warnings[-1] == (
        "i.gguf: nothing came to 3 matrices of 2 tensors (blk.0.ffn_up_exps.weight, "
        "blk.1.ffn_down_exps.weight): quantised with an importance of 1 for each column"
    )


def test_importance_that_nothing_takes_is_told(tmp_path: Path) -> None:
    model, imatrix = gguf_models.build("tied", tmp_path), Imatrix(Path("i.dat"), {})
    for kind in ("F16", "Q8_0"):
        with open_source(model) as source:
            plan = plan_quantize(source, kind, Options(imatrix=imatrix))
        assert plan.warnings == (
            "i.dat is not used: no tensor becomes a type that takes importance",
        )
