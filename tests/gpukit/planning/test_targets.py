"""Types within a target, types of a template, patterns from a file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import gguf_models
from support.checkpoints import DATA, build

import gpukit
from gpukit.conversion.run import run_plan
from gpukit.conversion.sensitivity import measure
from gpukit.conversion.within import plan_within
from gpukit.errors import ArgumentError
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.imatrix import Imatrix, read_imatrix
from gpukit.planning.overrides import make_overrides, read_patterns
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.planning.targets import candidates, plan_target
from gpukit.sources.opening import open_source

TINY = DATA / "tiny-shakespeare"
IMATRIX = DATA / "imatrix" / "tiny-shakespeare.gguf"


def planned(model: Path, **options: object) -> QuantizePlan:
    with open_source(model) as source:
        return plan_within(source, None, Options(**options), "cpu")  # type: ignore[arg-type]


Tiny = Callable[..., QuantizePlan]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Tiny]:
    """The plan of the tiny model within a target; it is measured once."""
    with open_source(TINY) as source:
        free = candidates(source, Options(target_bpw=1.0))
        losses = measure(source, free, "cpu")
        yield lambda **how: plan_target(source, Options(**how), free, losses)


def types(plan: QuantizePlan) -> dict[str, str]:
    return {output.spec.name: output.spec.type for output in plan.outputs}


def bits(plan: QuantizePlan) -> float:
    return 8 * sum(s.nbytes for s in plan.specs) / sum(s.n_elements for s in plan.specs)


@pytest.mark.parametrize("wanted", [2.7, 3.3, 4.2, 4.9, 6.0, 12.0])
def test_within_the_target_and_close_to_it(wanted: float, tiny: Tiny) -> None:
    plan = tiny(target_bpw=wanted)
    # From Q8_0 to BF16 is a large step.
    assert wanted - (0.02 if wanted < 8 else 0.5) < bits(plan) <= wanted
    assert types(plan)["output_norm.weight"] == "F32"
    assert plan.notes == (
        f"--target-bpw {wanted:g}: types chosen for the least squared error, without "
        "importance (--imatrix)",
    )


def test_a_size_is_that_of_the_file(tmp_path: Path, tiny: Tiny) -> None:
    for wanted in (2_500_000, 2_500_031):
        plan = tiny(target_size=wanted)
        with open_source(TINY) as source:
            out = run_plan(source, plan, tmp_path / "x.gguf", device="cpu").path
        assert wanted - 10_000 < out.stat().st_size == plan.size <= wanted


def test_the_file_names_what_most_weights_are(tiny: Tiny) -> None:
    for wanted, name in ((2.7, "Q2_K"), (8.45, "Q8_0")):
        plan = tiny(target_bpw=wanted)
        assert plan.file_type is not None
        assert plan.file_type.name == name
        assert plan.get("general.file_type") == plan.file_type.number


def test_again_with_other_threads_and_from_a_gguf(tmp_path: Path) -> None:
    import torch

    gguf = tmp_path / "x.gguf"
    gpukit.convert(TINY, gguf, device="cpu")
    plan = planned(gguf, target_bpw=4.2, imatrix=read_imatrix(IMATRIX))
    assert f"encoded by {IMATRIX} for 29 of 30 tensors" in plan.notes[0]
    found = types(plan)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        assert types(planned(TINY, target_bpw=4.2, imatrix=read_imatrix(IMATRIX))) == found
    finally:
        torch.set_num_threads(threads)


def test_a_column_that_one_token_makes_large_hides_nothing() -> None:
    """With importance as a weight of the sums this tensor would seem to lose a hundredth."""
    name = "blk.1.ffn_down.weight"
    entries = dict(read_imatrix(IMATRIX).entries)
    entries[name] = entries[name].copy()
    entries[name][137] = 1e4 * entries[name].sum()
    with open_source(TINY) as source:
        plain, large = (
            [c for c in candidates(source, options) if c.spec.name == name]
            for options in (Options(), Options(imatrix=Imatrix(Path("x.gguf"), entries)))
        )
        assert large[0].importance is not None
        (without,), (found,) = (measure(source, free, "cpu") for free in (plain, large))
    for kind, a, b in zip(plain[0].types, without, found, strict=True):
        assert 0.5 * a <= b < 3 * a or a == b == 0, kind


def test_what_the_user_decides_stays_and_counts() -> None:
    overrides = make_overrides(["attn_v=Q8_0"], output_type="Q6_K", embedding_type="F16")
    plan = planned(TINY, target_bpw=6.5, overrides=overrides)
    found = types(plan)
    assert found["output.weight"] == "Q6_K"
    assert found["token_embd.weight"] == "F16"
    assert {kind for name, kind in found.items() if "attn_v" in name} == {"Q8_0"}
    assert 6.45 < bits(plan) <= 6.5


def test_experts_and_odd_widths(tmp_path: Path) -> None:
    experts = gguf_models.build("eight-experts", tmp_path)
    entries = gguf_models.importance("eight-experts")
    plan = planned(experts, target_bpw=5.0, imatrix=Imatrix(tmp_path / "i.gguf", entries))
    assert bits(plan) <= 5.0
    assert types(plan)["blk.0.ffn_gate_inp.weight"] == "BF16"  # as it was
    odd = planned(gguf_models.build("width-288", tmp_path), target_bpw=5.2)
    assert {kind for kind in types(odd).values() if "K" in kind or kind == "IQ4_XS"} == set()
    none = gguf_models.build("width-100", tmp_path)
    with pytest.raises(ArgumentError, match=r"--target-bpw 4 cannot be reached: from \d+\.\d\d to"):
        planned(none, target_bpw=4)


@pytest.mark.parametrize("wanted", [0.5, 1.99, 31])
def test_a_target_out_of_reach_has_its_range(wanted: float, tiny: Tiny) -> None:
    with pytest.raises(ArgumentError) as caught:
        tiny(target_bpw=wanted)
    assert str(caught.value) == (
        f"{TINY}: --target-bpw {wanted:g} cannot be reached: from 2.65 to 16.00 are possible"
    )
    for ends in (2.65, 16.0):
        tiny(target_bpw=ends)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"target_size": 9000},
            r"of 9,000 bytes cannot be reached: from 1,433,024 to 8,445,376 bytes are",
        ),
        ({"target_bpw": 1.0}, "--target-bpw 1 cannot be reached: from 2.65 to 16.00 are possible"),
    ],
)
def test_a_target_out_of_reach_is_told_before_anything_is_measured(
    options: dict[str, Any], told: str
) -> None:
    with open_source(TINY) as source, pytest.raises(ArgumentError, match=told):
        plan_within(source, None, Options(**options), measured=lambda *_: pytest.fail("measured"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target_bpw": 4.0, "target_size": 5}, "--target-bpw and --target-size exclude each"),
        ({"target_bpw": 4.0, "like": Path("x")}, "--target-bpw and --like exclude each other"),
        ({"target_bpw": 0.0}, "--target-bpw 0: above 0 and up to 32 bits per weight are"),
        ({"target_bpw": float("nan")}, "--target-bpw nan: above 0 and up to 32"),
        ({"target_bpw": float("inf")}, "--target-bpw inf: above 0 and up to 32"),
        ({"target_bpw": 4.0, "overrides": make_overrides([], pure=True)}, "and --pure exclude"),
        ({"like": Path("x"), "overrides": make_overrides(["a=F16"])}, "--like and --tensor-type a"),
    ],
)
def test_contradictions(options: dict[str, object], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        Options(**options)  # type: ignore[arg-type]


def test_quantised_sources_are_refused_before_they_are_read(tmp_path: Path) -> None:
    small = tmp_path / "q8.gguf"
    gpukit.quantize(TINY, small, "Q8_0", device="cpu")
    with pytest.raises(ArgumentError, match="--allow-requantize"):
        planned(small, target_bpw=4.5)
    plan = planned(small, target_bpw=8.0, allow_requantize=True)
    assert "Q8_0" in types(plan).values()


def test_types_of_a_template(tmp_path: Path) -> None:
    template, out = tmp_path / "template.gguf", tmp_path / "out.gguf"
    overrides = make_overrides(["attn_v=Q5_1", "ffn_up=IQ4_NL"], output_type="F16")
    gpukit.quantize(TINY, template, "Q3_K_L", options=Options(overrides), device="cpu")
    gpukit.quantize(TINY, out, options=Options(like=template), device="cpu")
    assert out.read_bytes() == template.read_bytes()


def test_templates_that_do_not_fit(tmp_path: Path) -> None:
    model = gguf_models.build("width-100", tmp_path)
    other = gguf_models.build("eight-layers", tmp_path)
    with (
        open_source(other) as source,
        pytest.raises(ArgumentError, match=r"width-100.*: has no blk\.\d.*; name a GGUF of the sa"),
    ):
        plan_quantize(source, None, Options(like=model))
    wide = tmp_path / "wide.gguf"
    gpukit.quantize(other, wide, "Q4_K_M", device="cpu")
    with open_source(model) as source:
        with pytest.raises(ArgumentError, match="rows of 100 are no multiple of 256; name a GGUF"):
            plan_quantize(source, None, Options(like=wide))
        with pytest.raises(gpukit.GpukitError, match="nowhere"):
            plan_quantize(source, None, Options(like=tmp_path / "nowhere.gguf"))


def test_more_in_a_template_is_told(tmp_path: Path) -> None:
    model, template = tmp_path / "one.gguf", tmp_path / "template.gguf"
    gguf = gguf_models.build("tied", tmp_path)
    gpukit.quantize(gguf_models.build("eight-layers", tmp_path), template, "Q8_0", device="cpu")
    with open_source(gguf) as source:
        plan = plan_quantize(source, None, Options(like=template))
    assert any("are not looked at" in line for line in plan.warnings)
    assert not model.exists()


def test_patterns_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "types.txt"
    file.write_text("attn_v=q8_0  blk\\.0\\.ffn=Q6_K\n\n\tffn_down=F16\n")
    assert read_patterns(file) == ["attn_v=q8_0", "blk\\.0\\.ffn=Q6_K", "ffn_down=F16"]
    with open_source(TINY) as source:
        found = types(plan_quantize(source, "Q4_K_S", Options(make_overrides(read_patterns(file)))))
    assert found["blk.0.ffn_down.weight"] == "Q6_K"
    assert found["blk.1.ffn_down.weight"] == "F16"
    for text, told in ((b" \n", "holds no REGEX=TYPE"), (b"a=\xff", "byte 2 is not UTF-8")):
        file.write_bytes(text)
        with pytest.raises(ArgumentError, match=told):
            read_patterns(file)
    with pytest.raises(ArgumentError, match="cannot be read: No such file"):
        read_patterns(tmp_path / "nowhere")


def test_from_a_folder_by_convert(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    gpukit.convert(build("plain", tmp_path), out, target_bpw=8.6, device="cpu")
    with GGUFFile(out) as found:
        tensors = list(found.tensors.values())
    assert 8 * sum(t.nbytes for t in tensors) <= 8.6 * sum(t.n_elements for t in tensors)
    with pytest.raises(ArgumentError, match="chooses the types itself; leave Q4_0 out"):
        gpukit.convert(TINY, out, "Q4_0", target_bpw=8.6, device="cpu")
    with pytest.raises(ArgumentError, match="is for a GGUF; name a "):
        gpukit.convert(TINY, tmp_path / "x.safetensors", target_bpw=8.6, device="cpu")
