"""A model by llama.cpp's converter: bytes as of its own file, and every way in which it fails."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.converter_folders import TREE, toy

import gpukit
from gpukit import ArgumentError, CheckpointError, Converter, Options, Warned
from gpukit.errors import GpukitError
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.planning.overrides import Overrides
from gpukit.sources import converter_child, lazy_rows
from gpukit.sources.converter_process import CHILD


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("converter") / "toy")


def _by_itself(model: Path, kind: str, out: Path) -> Path:
    """The converter's own file."""
    script = TREE / "convert_hf_to_gguf.py"
    command = [sys.executable, script, model, "--outfile", out, "--outtype", kind]
    subprocess.run(command, check=True, capture_output=True)
    return out


def test_files_are_those_of_the_converter_quantised(model: Path, tmp_path: Path) -> None:
    start = _by_itself(model, "bf16", tmp_path / "start.gguf")
    options = Options(overrides=Overrides(), split_max_size=100_000)
    gpukit.quantize_many(
        model, tmp_path / "ours-{type}.gguf", ["Q4_K_M", "Q8_0"], options=options, converter=TREE
    )
    gpukit.quantize_many(
        start, tmp_path / "theirs-{type}.gguf", ["Q4_K_M", "Q8_0"], options=options
    )
    ours, theirs = sorted(tmp_path.glob("ours-*")), sorted(tmp_path.glob("theirs-*"))
    assert len(ours) == len(theirs) > 4
    for our, their in zip(ours, theirs, strict=True):
        assert our.read_bytes() == their.read_bytes(), our.name


def test_without_a_type_it_is_the_converters_own_file(model: Path, tmp_path: Path) -> None:
    theirs = _by_itself(model, "auto", tmp_path / "theirs.gguf")
    gpukit.convert(model, tmp_path / "ours.gguf", converter=TREE)
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()


def test_among_several_types_they_are_the_same_bytes(model: Path, tmp_path: Path) -> None:
    gpukit.convert_many(model, tmp_path / "{type}.gguf", ["F16", "Q8_0"], converter=TREE)
    for kind in ("F16", "Q8_0"):
        theirs = _by_itself(model, kind.lower(), tmp_path / "theirs.gguf")
        assert (tmp_path / f"{kind}.gguf").read_bytes() == theirs.read_bytes(), kind


def test_tensors_that_are_there_already_and_warnings(tmp_path: Path) -> None:
    told: list[str] = []

    def report(event: object) -> None:
        if isinstance(event, Warned):
            told.append(event.text)

    folder = toy(tmp_path / "toy", "be eager and warn")
    theirs = _by_itself(folder, "q8_0", tmp_path / "theirs.gguf")
    gpukit.convert(folder, tmp_path / "ours.gguf", "Q8_0", converter=TREE, report=report)
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()
    assert any("warns: the vocabulary is odd (and " in line for line in told)
    assert any("cannot run architecture 'toy'" in line for line in told)


@pytest.mark.parametrize(
    ("do", "wanted"),
    [
        ("know nothing", "does not know 'ToyModel' either; update the checkout"),
        ("lack a package", "needs the Python package 'a_package_that_nobody_has': install it for"),
        ("crash", "stopped while it planned: KeyError: 'rope_theta'"),
        ("exit", "stopped while it planned: "),
        ("die", "stopped while it planned: killed by signal 9"),
        ("fetch", r"asks for the network \(models.example\)"),
        ("write two files", "makes 2 files of this model"),
        ("crash midway", "stopped at blk.0.ffn_down.weight: ValueError: the weights are torn"),
        ("be killed", "stopped at blk.0.ffn_down.weight: killed by signal 9"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    do: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scratch, out = toy(tmp_path / "toy", do), tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with pytest.raises(GpukitError, match=wanted) as caught:
        gpukit.convert(folder, out / "a.gguf", "Q8_0", converter=TREE)
    assert "\n" not in str(caught.value)
    assert [*out.iterdir()] == []
    assert do in ("die", "be killed") or [*scratch.iterdir()] == []


@pytest.mark.peer
def test_code_of_the_folder_runs_only_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    folder = toy(tmp_path / "toy", "run code")
    (folder / "tokenization.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization.T", null]}}'
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match="allow it with --trust-remote-code"):
        gpukit.convert(folder, tmp_path / "a.gguf", converter=TREE)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="stopped while it planned"):
        gpukit.convert(folder, tmp_path / "a.gguf", converter=Converter(TREE, trust=True))
    assert (tmp_path / "ran").exists()


def test_it_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    folder, scratch = toy(tmp_path / "toy", "wait"), tmp_path / "scratch"
    scratch.mkdir()
    child = subprocess.Popen(
        [sys.executable, CHILD, TREE, folder, "auto", "no"], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    while not (folder / "waiting").exists():
        assert child.poll() is None
        time.sleep(0.02)
    assert [*scratch.iterdir()]
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 0
    assert [*scratch.iterdir()] == []


def test_what_is_no_checkout_of_today(model: Path, tmp_path: Path) -> None:
    def convert(tree: Path, **how: Path) -> None:
        gpukit.convert(model, tmp_path / "a.gguf", converter=Converter(tree, **how))

    with pytest.raises(ArgumentError, match=r"no checkout of llama.cpp: there is no convert_hf_to"):
        convert(tmp_path)
    (tmp_path / "convert.py").touch()
    with pytest.raises(ArgumentError, match=r"this llama.cpp is too old: it has no convert_hf_to"):
        convert(tmp_path)
    (tmp_path / "convert_hf_to_gguf.py").touch()
    (tmp_path / "gguf.py").write_text("class GGUFWriter: pass\n")
    with pytest.raises(
        ArgumentError, match=r"too old: its gguf has no GGUFWriter.write_tensors_to"
    ):
        convert(tmp_path)
    (tmp_path / "gguf.py").unlink()
    with pytest.raises(ArgumentError, match=r"too old: its convert_hf_to_gguf.py has no main"):
        convert(tmp_path)
    with pytest.raises(ArgumentError, match=r"--converter-python .*nothing: No such file"):
        convert(TREE, python=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--outfile=a", "OUT is the file"),
        ("--outt", "TYPE says it"),
        ("--vocab-only", "weights are wanted"),
        ("--split-max-size", "give --split-max-size to gpukit"),
        ("--dry-run", "give --dry-run to gpukit"),
        ("--bigendian", "little-endian"),
        ("--remote", "fetch the folder first"),
        ("-h", "ask the converter itself"),
    ],
)
def test_arguments_that_make_no_sense(argument: str, remedy: str, model: Path) -> None:
    with pytest.raises(ArgumentError, match=f"--converter-arg={argument}: .*{remedy}"):
        gpukit.plan(model, converter=Converter(TREE, (argument,)))


def test_arguments_are_passed_on(model: Path) -> None:
    gpukit.plan(model, converter=Converter(TREE, ("--do", "nothing"))).close()
    with pytest.raises(CheckpointError, match=r"stopped while it planned: .*--mmproj"):
        gpukit.plan(model, converter=Converter(TREE, ("--mmproj",)))


def test_what_it_does_not_go_with(model: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "a.gguf", tmp_path / "a.txt"
    with pytest.raises(ArgumentError, match="--converter takes no adapter: merge it into a folder"):
        gpukit.convert(model, out, adapters=["x"], converter=TREE)
    with pytest.raises(ArgumentError, match="--pre and --converter"):
        gpukit.convert(model, out, pre="llama-bpe", converter=TREE)
    with pytest.raises(ArgumentError, match="--calibrate and --converter"):
        gpukit.quantize(model, out, "Q4_0", calibrate=text, converter=TREE)
    gguf = _by_itself(model, "f16", tmp_path / "f16.gguf")
    with pytest.raises(ArgumentError, match="no model folder, which is what --converter converts"):
        gpukit.convert(gguf, out, converter=TREE)


def test_provenance_says_that_it_was_used(model: Path) -> None:
    with gpukit.plan(model, "Q4_0", converter=TREE, provenance=True) as plan:
        assert plan.records.get("gpukit.recipe.options") == ["--converter"]


def test_a_tensor_in_chunks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter_child, "lazy_rows", lazy_rows, raising=False)
    whole = np.arange(60, dtype=np.float32).reshape(12, 5)
    chunks = SimpleNamespace(_chunks=[lambda: whole[:5], lambda: whole[5:6], lambda: whole[6:]])
    rows = converter_child.Chunks(chunks)
    for begin, end in ((0, 3), (3, 7), (5, 6), (0, 12), (11, 12), (2, 4)):
        assert np.array_equal(rows.of(begin, end).numpy(), whole[begin:end])


def test_into_the_store(model: Path, tmp_path: Path) -> None:
    store = gpukit.Store(tmp_path / "models")
    made = store.create("toy", gpukit.Modelfile(source=str(model)), "Q4_0", converter=TREE)
    with GGUFFile(store.resolve(str(made.name)).gguf) as file:
        assert file.tensors["blk.0.attn_v.weight"].type == "Q4_0"
        assert file.get("general.architecture") == "toy"
