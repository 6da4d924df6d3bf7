"""Several types from one reading, as a user asks for them: bytes, provenance, plans, refusals."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.checkpoints import DATA
from support.command_line import gpukit as run
from support.loras import lora

import gpukit

TINY = DATA / "tiny-shakespeare"
IMATRIX = DATA / "imatrix" / "tiny-shakespeare.gguf"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source as a GGUF and an adapter."""
    folder = tmp_path_factory.mktemp("many")
    gpukit.convert(TINY, folder / "tiny.gguf", "BF16", device="cpu")
    lora(TINY, folder / "lora")
    return folder


def made(folder: Path, *words: object) -> list[dict[str, object]]:
    done = run(*words, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("extra", [(), ("--imatrix", IMATRIX, "--provenance")])
def test_quantize(extra: Sequence[object], place: Path, tmp_path: Path) -> None:
    source, kinds = place / "tiny.gguf", ["Q4_0", "Q8_0", "F16", "Q5_0"]
    named = tmp_path / "x-{type}.gguf"
    found = made(
        tmp_path, "quantize", source, "--types", "q4_0, Q8_0,F16,Q5_0", "--out", named, *extra
    )
    assert [Path(str(result["path"])).name for result in found] == [f"x-{k}.gguf" for k in kinds]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"x-{k}.gguf" for k in kinds)
    stored = found[0]["read_bytes"]
    assert {result["read_bytes"] for result in found} == {stored}
    for kind in kinds:
        alone = tmp_path / "alone.gguf"
        done = run("quantize", source, alone, kind, "--device", "cpu", *extra)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"x-{kind}.gguf").read_bytes() == alone.read_bytes(), kind


def test_convert_and_merge(place: Path, tmp_path: Path) -> None:
    adapter = ("--adapter", f"{place / 'lora'}:0.5", "--provenance")
    found = made(
        tmp_path, "convert", TINY, tmp_path / "c-{type}.gguf", "--types", "Q4_K,BF16", *adapter,
        "--split-max-size", "500K",
    )  # fmt: skip
    assert all(len(result["paths"]) > 1 for result in found)  # type: ignore[arg-type]
    made(tmp_path, "merge", TINY, "--types", "Q4_K_M,BF16", "--out", tmp_path / "m-{type}.gguf",
         *adapter)  # fmt: skip
    for kind in ("Q4_K_M", "BF16"):
        alone = gpukit.merge(
            TINY, [(place / "lora", 0.5)], tmp_path / "alone.gguf", kind, provenance=True,
            device="cpu",
        )  # fmt: skip
        assert (tmp_path / f"m-{kind}.gguf").read_bytes() == alone.path.read_bytes()
        parts = gpukit.convert(
            TINY, tmp_path / "alone.gguf", kind, adapters=[(place / "lora", 0.5)],
            provenance=True, split_max_size=500_000, device="cpu",
        )  # fmt: skip
        split = sorted(tmp_path.glob(f"c-{kind}-*.gguf"))
        assert [p.read_bytes() for p in split] == [p.read_bytes() for p in parts.paths]


def test_safetensors(place: Path, tmp_path: Path) -> None:
    made(tmp_path, "convert", place / "tiny.gguf", tmp_path / "{type}.safetensors",
         "--types", "F16,F32")  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"F16.safetensors", "F32.safetensors"}


def test_calibrated_once(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("First Citizen: before we proceed any further, hear me speak.\n" * 100)
    found = gpukit.quantize_many(
        place / "tiny.gguf", tmp_path / "{type}.gguf", ["Q8_0", "Q4_0"], calibrate=text,
        device="cpu",
    )  # fmt: skip
    alone = gpukit.quantize(
        place / "tiny.gguf", tmp_path / "alone.gguf", "Q4_0", calibrate=text, device="cpu"
    )
    assert found[1].path.read_bytes() == alone.path.read_bytes()


def test_what_is_printed(place: Path, tmp_path: Path) -> None:
    words = ("quantize", place / "tiny.gguf", tmp_path / "{type}.gguf", "--types", "Q4_0,Q8_0")
    done = run(*words, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    assert "Q4_0: a file of " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 types, ")
    assert [p["file_type"] for p in json.loads(run(*words, "--dry-run", "--json").stdout)] == [
        "Q4_0", "Q8_0",
    ]  # fmt: skip
    done = run(*words, "--device", "cpu")
    assert done.stderr.splitlines() == [
        "quantizing BF16 model to Q4_0, Q8_0", "verifying conversion",
    ]  # fmt: skip
    assert f"{tmp_path / 'Q8_0.gguf'}: " in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" were read, once")


OUT = "OUT-{type}.gguf"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("quantize", "IN", "x.gguf", "--types", "Q4_0,Q8_0"),
         "no {type} in it, where the name of each type goes; write model-{type}.gguf"),
        (("quantize", "IN", OUT, "--types", "Q4_K,Q4_K_M"), "type Q4_K_M: Q4_K is the same;"),
        (("quantize", "IN", OUT, "--types", "Q4_0,Q9"), "'Q9'"),
        (("quantize", "IN", OUT, "--types", " ,"), "--types names no type"),
        (("quantize", "IN", OUT, "Q8_0", "--types", "Q4_0"), "--types and TYPE Q8_0 exclude"),
        (("quantize", "IN", OUT, "--types", "Q4_0", "--target-bpw", "4"),
         "--types and --target-bpw 4.0 exclude"),
        (("quantize", "IN", OUT, "--types", "Q4_0", "--out", "x"), "are both OUT; give one"),
        (("convert", "IN", "--out", OUT), "--out is for --types"),
        (("convert", "IN", "--types", "Q4_0"), "Missing argument 'OUT' (see gpukit conv"),
        (("convert", "IN", "no/{type}.gguf", "--types", "Q4_0"), "there is no folder no; make it"),
        (("convert", "IN", "{type}.safetensors", "--types", "F16,Q8_0"), "cannot hold Q8_0"),
        (("merge", "IN", "{type}", "--types", "F16", "--adapter", "x"), "a folder is written al"),
        (("merge", "IN", OUT, "--types", "F16"), "no adapter to merge"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_looked_for(
    words: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
