"""`gpukit perplexity` as a user calls it."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support import forked
from support.checkpoints import DATA
from support.command_line import gpukit

import gpukit as library

TINY = DATA / "tiny-shakespeare"
TEXT = DATA / "shakespeare.txt"
LOGITS = DATA / "golden" / "llama-cpp-logits.dat"
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("-f", TEXT, "--num-ctx", 32, "--chunks", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "f32.gguf"
    library.convert(TINY, out, "F32", device="cpu")
    return out


def test_chunks_come_as_llama_perplexity_prints_them(file: Path) -> None:
    done = gpukit("perplexity", file, *SMALL)
    assert done.returncode == 0, done.stderr
    first, last, amount = done.stdout.splitlines()
    assert first == "[1]7.6679,[2]6.1116,"
    assert re.fullmatch(r"Final estimate: PPL = 6\.1116 \+/- 2\.\d{5}", last)
    assert amount.startswith("2 chunks of 32 tokens, 30 scored, ")
    assert done.stderr == f"measuring {file}\n"
    quiet = gpukit("perplexity", file, *SMALL, "--quiet")
    assert quiet.stdout.splitlines()[0] == last
    assert quiet.stderr == ""


def test_one_document_is_all_that_stdout_has(file: Path) -> None:
    done = gpukit("perplexity", file, *SMALL, "--json", "--against", LOGITS)
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (found["chunks"], found["tokens"]) == (2, 30)
    assert found["perplexity"] == pytest.approx(6.1116, abs=5e-5)
    assert found["against"] == str(LOGITS)
    assert abs(found["kld"]) < 1e-4
    assert {"error", "kld_99", "kld_999", "same_top", "running"} <= found.keys()
    assert "measuring" in done.stderr


def test_the_text_comes_on_stdin_too(file: Path) -> None:
    words = [str(word) for word in ("perplexity", file, *SMALL, "--json", "--quiet")]
    words[words.index(str(TEXT))] = "-"
    done = gpukit(*words, stdin=TEXT.read_bytes())
    assert json.loads(done.stdout)["running"] == pytest.approx([7.6679, 6.1116], abs=5e-5)
    bad = gpukit(*words, stdin=b"abc\xff")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "stdin: byte 3 is no UTF-8" in bad.stderr


def test_a_reference_gives_rows_and_statistics(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.dat"
    saved = gpukit("perplexity", file, *SMALL, "--save-logits", out)
    assert saved.returncode == 0
    done = gpukit("perplexity", file, *SMALL, "--against", out)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["chunk", "PPL"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert "KL divergence statistics" in done.stdout
    assert re.search(r"^Mean PPL\(base\) +: +6\.11", done.stdout, re.M)
    assert re.search(r"^99\.9% +KLD: +\d\.\d{6}$", done.stdout, re.M)
    assert re.search(r"^Same top p: 100\.000 ", done.stdout, re.M)
    assert lines[-2].startswith("Final estimate: PPL = 6.1116")


def test_types_make_a_table(tmp_path: Path) -> None:
    done = gpukit("perplexity", TINY, *SMALL, "--types", "Q8_0, q2_k", "--json", "--quiet")
    found = json.loads(done.stdout)
    assert found["against"] == str(TINY)
    base, q8, q2 = found["models"]
    assert [row["type"] for row in found["models"]] == ["BF16", "Q8_0", "Q2_K"]
    assert "kld" not in base
    assert 0 < q8["kld"] < q2["kld"]
    table = gpukit("perplexity", TINY, *SMALL, "--types", "Q8_0")
    head, first, second, _, last = table.stdout.splitlines()
    assert head.split()[:4] == ["model", "type", "size", "bits"]
    assert first.split()[0] == str(TINY)
    assert second.split()[:3] == [str(TINY), "as", "Q8_0"]
    assert f"against {TINY}" in last


def test_a_report_is_a_page_beside_what_is_printed(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    words = ("perplexity", TINY, *SMALL, "--types", "q4_0", "--report", out)
    done = gpukit(*words, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    inside = re.findall(r'id="gpukit-report">(.*?)</script>', text, re.S)
    both = (json.loads(text)["models"] for text in (done.stdout, inside[0]))
    for told, kept in zip(*both, strict=True):
        assert {key: kept[key] for key in told} == told
    refused = gpukit("perplexity", TINY, *SMALL, "--report", tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"Error: {tmp_path}: a folder; name the file to write\n"


def test_a_journal_is_gone_on_from(file: Path, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    first = gpukit("perplexity", file, *SMALL, "--journal", journal)
    more = gpukit("perplexity", file, *SMALL[:-3], 3, "--device", "cpu", "--journal", journal)
    assert more.returncode == 0, more.stderr
    assert more.stdout.startswith(first.stdout.splitlines()[0])
    assert len(journal.read_bytes().splitlines()) == 4
    other = gpukit("perplexity", file, *SMALL, "--stride", 4, "--journal", journal)
    assert other.returncode == 2
    assert other.stderr.startswith(f"Error: {journal}: the journal of another run: stride is null")


def test_a_killed_run_goes_on(file: Path, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    words = ("perplexity", file, "-f", TEXT, "--num-ctx", 32, "--device", "cpu", "--journal",
             journal)  # fmt: skip
    run = forked.command(*words)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.wait()
    known = journal.read_bytes().count(b"\n") - 1
    done = gpukit(*words, "--chunks", known + 2)
    assert f"{known} of {known + 2} chunks are known from {journal}" in done.stderr
    assert done.stdout.startswith("[1]7.6679,[2]6.1116,[3]9.9663,")
    assert f"[{known + 2}]" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("no/model.gguf", "-f", TEXT), 1, "no/model.gguf: no such file"),
        ((TINY,), 2, "no text; give a file of one with --file, such as -f wiki.test.raw"),
        ((TINY, "-f", "no.txt"), 2, "no.txt: No such file"),
        (
            (TINY, "-f", TEXT, "--num-ctx", 4096),
            2,
            "shakespeare.txt: the text has 2374 tokens; two",
        ),
        ((TINY, "-f", TEXT, "--types", ","), 2, "--types names no type"),
        ((TINY, "-f", TEXT, "--imatrix", "x"), 2, "--imatrix is for --types"),
        ((TINY, TINY, "-f", TEXT, "--types", "Q4_0"), 2, "types are of one model, and 2"),
        ((TINY, TINY, "-f", TEXT, "--save-logits", "x"), 2, "--save-logits is for one model"),
        ((TINY, "-f", TEXT, "--chunks", "x"), 2, "x"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[object, ...], code: int, why: str) -> None:
    done = gpukit("perplexity", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.peer
def test_beside_llama_perplexity_itself(file: Path) -> None:
    """Where it is built beside the other peers, or installed."""
    built = ROOT / ".venv-peers" / "bin" / "llama-perplexity"
    program = str(built) if built.exists() else shutil.which("llama-perplexity")
    if program is None:
        pytest.skip("llama-perplexity is not here")
    exact = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-repack", "-t", "1")
    theirs = subprocess.run(
        [program, "-m", file, "-f", TEXT, "-c", "64", "-b", "64", "--chunks", "4", *exact],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = gpukit("perplexity", file, "-f", TEXT, "--num-ctx", 64, "--chunks", 4, "--device", "cpu")
    pattern = r"\[\d\](\d+\.\d+),"
    mine, values = (
        [float(found) for found in re.findall(pattern, done.stdout)] for done in (ours, theirs)
    )
    # At its end it does not always wait for its own last lines.
    assert len(mine) == 4
    assert len(values) >= 2
    assert mine[: len(values)] == pytest.approx(values, rel=1e-5)
