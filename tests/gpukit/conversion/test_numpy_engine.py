"""The engine without torch: bytes, sums and refusals of the other, and when it is taken."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from support import forms, gguf_models

from gpukit.conversion import pipeline
from gpukit.conversion.choice import choose_engine
from gpukit.conversion.engine import Engine
from gpukit.conversion.numpy_engine import PlainConversion, plain_conversion
from gpukit.conversion.run import run_plan
from gpukit.conversion.torch_engine import Conversion
from gpukit.errors import ArgumentError, CheckpointError
from gpukit.formats.gguf_writer import GGUFWriter as Writer
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.plan import Options, PlannedOutput
from gpukit.planning.planner import plan_quantize
from gpukit.planning.totals import Fidelity
from gpukit.sources.base import Source
from gpukit.sources.opening import open_source
from gpukit_kernels import quantize
from gpukit_kernels.cpu import cache, compiled
from gpukit_kernels.cpu.program import kept, program_name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler"),
]

WIDTH = 288
NAME = "blk.0.ffn_up.weight"


def compile_for(kind: str, weighted: bool) -> None:
    importance = torch.ones(256) if weighted else None
    quantize(torch.ones(1, 256), kind, importance, backend="compiled")


def model(folder: Path, kind: str, values: np.ndarray) -> Path:
    """A GGUF with one matrix of F32, F16 or BF16 and a norm."""
    path = folder / f"{kind}.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    if kind == "BF16":
        bits = torch.from_numpy(values).bfloat16().view(torch.uint8).numpy()
        writer.add_tensor(NAME, bits, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(NAME, values.astype(np.float16 if kind == "F16" else np.float32))
    writer.add_tensor("blk.0.ffn_norm.weight", np.ones(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def engines(source: Source, outputs: Sequence[PlannedOutput], threads: int) -> list[Engine]:
    programs = {}
    for output in outputs:
        if output.spec.type != output.source_type:
            weighted = output.importance is not None
            name = program_name(output.spec.type, weighted)
            compile_for(output.spec.type, weighted)
            programs[name] = kept(name)
            assert programs[name] is not None
    return [
        Conversion(source, outputs, [torch.device("cpu")]),
        PlainConversion(source, outputs, programs, threads),
    ]


def both(
    path: Path, kind: str, folder: Path, options: Options | None = None, threads: int = 2
) -> list[tuple[bytes, tuple[Fidelity, ...]]]:
    """The file, and what was lost, of the engine with torch and of the one without."""
    found = []
    with open_source(path) as source:
        plan = plan_quantize(source, kind, options)
        for number, engine in enumerate(engines(source, plan.outputs, threads)):
            out = folder / f"{number}.gguf"
            with Writer(out, plan.fields, plan.specs) as writer:
                passed = pipeline.pass_through(engine, writer, "", 1 << 30, lambda _e: None)
            found.append((out.read_bytes(), passed.fidelity))
    return found


def assert_same(found: list[tuple[bytes, tuple[Fidelity, ...]]]) -> None:
    (wanted, lost), (got, also_lost) = found
    assert got == wanted
    for one, other in zip(lost, also_lost, strict=True):
        assert other.count == one.count
        # The same float32 squares, added up in float64 in another order.
        assert other.error == pytest.approx(one.error, rel=1e-12)
        assert other.square == pytest.approx(one.square, rel=1e-12)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("threads", [1, 2, 20])
def test_sources_and_threads(
    kind: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((1500, WIDTH)).astype(np.float32)
    path = model(tmp_path, kind, values)
    assert_same(both(path, "Q4_0", tmp_path, threads=threads))
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 7 * WIDTH)
    assert_same(both(path, "Q4_0", tmp_path, threads=threads))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["eight-experts", "tied"])
def test_importance_of_columns_and_experts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Q4_0 looks at the rows' means, Q6_K at importance alone.
    options = Options(imatrix=Imatrix(Path("x"), gguf_models.importance(name)))
    with open_source(gguf_models.build(name, tmp_path)) as source:
        # Programs for float32 are those of other tests.
        path = run_plan(source, plan_quantize(source, "F32"), tmp_path / "f32.gguf").path
    for kind in ("Q4_0", "Q6_K"):
        for weights in (1 << 23, 300, 1):
            monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", weights)
            assert_same(both(path, kind, tmp_path, options))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), rf"{NAME}: value \[2, 5\] is nan; a model with such weights"),
        (-float("inf"), rf"{NAME}: value \[2, 5\] is -inf; a model with such weights"),
        (9e6, rf"{NAME}: a value of magnitude 9e\+06 overflows Q4_0; choose BF16 or F32"),
    ],
)
def test_what_is_refused(value: float, what: str, tmp_path: Path) -> None:
    values = np.ones((40, WIDTH), np.float32)
    values[2, 5] = value
    with open_source(model(tmp_path, "F32", values)) as source:
        plan = plan_quantize(source, "Q4_0")
        for engine in engines(source, plan.outputs, 2):
            with (
                pytest.raises(CheckpointError, match=what),
                Writer(tmp_path / "x.gguf", plan.fields, plan.specs) as writer,
            ):
                pipeline.pass_through(engine, writer, "", 1 << 30, lambda _e: None)
    assert not list(tmp_path.glob("*x.gguf*"))


def test_importance_that_no_search_can_add_up(tmp_path: Path) -> None:
    values = np.linspace(-3, 3, 40 * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    options = Options(imatrix=Imatrix(Path("x"), {NAME: np.full(WIDTH, 3e38, np.float32)}))
    with open_source(model(tmp_path, "F32", values)) as source:
        plan = plan_quantize(source, "Q4_0", options)
        for engine in engines(source, plan.outputs, 2):
            with (
                pytest.raises(CheckpointError, match=r"importance of up to 3e\+38 overflows"),
                Writer(tmp_path / "x.gguf", plan.fields, plan.specs) as writer,
            ):
                pipeline.pass_through(engine, writer, "", 1 << 30, lambda _e: None)


RUN = """
import sys
from gpukit_cli.app import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def run(
    path: Path, folder: Path, *words: str, environment: dict[str, str]
) -> tuple[bool, dict, bytes]:
    """Whether the command loaded torch, what it said, and the file."""
    out = folder / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-c", RUN, "quantize", path, out, *words, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, loaded = done.stdout.splitlines()
    return loaded == "True", json.loads(said), out.read_bytes()


@pytest.mark.thorough
def test_a_command_whose_programs_are_kept_does_without_torch(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((300, WIDTH)).astype(np.float32)
    path = model(tmp_path, "F32", values)
    # Set by what was compiled in this process.
    there = {key: value for key, value in os.environ.items() if key != cache.VARIABLE}
    there["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    folder = tmp_path / "cache" / "gpukit" / "programs"
    loaded, first, wanted = run(path, tmp_path, "Q4_0", environment=there)
    assert loaded  # nothing is compiled for so little
    compile_for("Q4_0", weighted=False)
    folder.mkdir(parents=True, exist_ok=True)
    kept_program = cache.place("Q4_0")
    for file in (kept_program, kept_program.with_suffix(".sha256")):
        shutil.copy(file, folder)
    for words in (["Q4_0"], ["Q4_0", "--device", "cpu"]):
        loaded, said, got = run(path, tmp_path, *words, environment=there)
        assert not loaded, (words, said)
        assert got == wanted
        assert said["types"]["Q4_0"]["relative_rms_error"] == pytest.approx(
            first["types"]["Q4_0"]["relative_rms_error"], rel=1e-9
        )
    # What is damaged is done with torch, as what is missing.
    program = folder / kept_program.with_suffix(".so").name
    program.write_bytes(program.read_bytes()[:500])
    loaded, _, got = run(path, tmp_path, "Q4_0", environment=there)
    assert loaded
    assert got == wanted


def test_the_wish_decides_and_not_what_was_imported(tmp_path: Path) -> None:
    compile_for("Q4_0", weighted=False)
    with open_source(model(tmp_path, "F32", np.ones((4, WIDTH), np.float32))) as source:
        plan = plan_quantize(source, "Q4_0")
        for wish, kind in (
            ("auto", PlainConversion),
            ("numpy", PlainConversion),
            ("torch", Conversion),
        ):
            assert type(choose_engine(source, plan.outputs, "cpu", wish)) is kind
        done = [
            run_plan(source, plan, tmp_path / f"{wish}.gguf", device="cpu", engine=wish).path
            for wish in ("auto", "numpy", "torch")
        ]
        first, *others = (path.read_bytes() for path in done)
        assert others == [first, first]


def test_what_numpy_declines_goes_to_torch_unless_numpy_was_asked_for(tmp_path: Path) -> None:
    compile_for("Q4_0", weighted=False)
    floats = model(tmp_path, "F32", np.ones((4, WIDTH), np.float32))
    with open_source(floats) as source:
        plan = plan_quantize(source, "Q4_0")
        blocks = run_plan(source, plan, tmp_path / "blocks.gguf").path
        why = "only device cpu can be used, not cuda:0"
        assert plain_conversion(source, plan.outputs, "cuda:0") == why
    for path, why in (
        (blocks, f"{NAME} cannot be decoded from Q4_0"),
        (
            forms.build("fp8-alone", tmp_path),
            "blk.0.ffn_up.weight cannot be decoded from F8_E5M2",
        ),
    ):
        with open_source(path) as source:
            plan = plan_quantize(source, "F32", Options(allow_requantize=True))
            assert type(choose_engine(source, plan.outputs, "cpu")) is Conversion
            with pytest.raises(ArgumentError, match=f"{path}: without torch {why}"):
                choose_engine(source, plan.outputs, "cpu", "numpy")


WISH = """
import sys
from pathlib import Path
from gpukit.conversion.choice import choose_engine
from gpukit.errors import ArgumentError
from gpukit.planning.planner import plan_quantize
from gpukit.sources.opening import open_source

with open_source(Path(sys.argv[1])) as source:
    try:
        choose_engine(source, plan_quantize(source, "Q4_0").outputs, "cpu", "numpy")
    except ArgumentError as error:
        print(error)
print("torch" in sys.modules)
"""


def test_a_program_that_nobody_has_left_is_named(tmp_path: Path) -> None:
    path = model(tmp_path, "F32", np.ones((4, WIDTH), np.float32))
    there = {key: value for key, value in os.environ.items() if key != cache.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", WISH, path],
        env={**there, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    why = f"{path}: without torch there is no program for Q4_0 yet; engine 'torch' does it"
    assert done.stdout.splitlines() == [why, "False"]
