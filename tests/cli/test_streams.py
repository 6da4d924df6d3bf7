"""Streams that are closed, read no further or full; outputs that are looked at first."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from support.shells import RUN, TINY, shell

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def answer(spoken: Path) -> Done:
    """What `RUN` says with all its streams."""
    done = shell(RUN, spoken.parent)
    assert done.returncode == 0
    assert done.stdout.strip()
    return done


@pytest.mark.thorough
@pytest.mark.parametrize("closed", ["<&-", "2>&-"])
def test_run_with_closed_streams_answers(closed: str, answer: Done, spoken: Path) -> None:
    done = shell(f"{RUN} {closed}", spoken.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer.stdout, "")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_conversions_with_closed_streams(closed: str, spoken: Path, tmp_path: Path) -> None:
    """The file that is written must not be the standard output that is missing."""
    line = f"$gpukit convert {TINY} tiny.gguf --type F16 {closed}; echo rc $? >&2"
    done = shell(f"exec 2>told; {line}", tmp_path)
    assert (tmp_path / "told").read_text().splitlines()[-1] == "rc 0"
    assert "bug" not in done.stdout
    assert (tmp_path / "tiny.gguf").read_bytes() == spoken.read_bytes()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", ["list", "run no prompt", "show none"])
def test_commands_with_closed_streams_end_as_without(words: str, tmp_path: Path) -> None:
    whole = shell(f"$gpukit {words}", tmp_path)
    for closed in ("<&-", ">&-", "2>&-"):
        done = shell(f"$gpukit {words} {closed}", tmp_path)
        assert done.returncode == whole.returncode, closed
        assert done.stdout == ("" if closed == ">&-" else whole.stdout), closed
        assert done.stderr == ("" if closed == "2>&-" else whole.stderr), closed


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", ["inspect tiny.gguf --json", "--help", "inspect tiny.gguf"])
def test_a_reader_that_has_gone_is_no_fault(words: str, spoken: Path) -> None:
    """As in `| head -1`; that the reader has gone already makes it certain."""
    line = f"{{ sleep 0.2; $gpukit {words}; echo rc $? >&2; }} | true"
    done = shell(line, spoken.parent)
    assert done.stderr in ("rc 1\n", "rc 141\n")
    line = f"{{ sleep 0.2; $gpukit {words} --nonsense; echo rc $? > told; }} 2>&1 | true"
    done = shell(line, spoken.parent)
    assert done.stderr == ""
    assert (spoken.parent / "told").read_text() == "rc 2\n"


@pytest.mark.parametrize("words", ["inspect tiny.gguf --json", "--version", "list"])
def test_a_full_disk_behind_stdout_is_told(words: str, spoken: Path) -> None:
    done = shell(f"$gpukit {words} > /dev/full", spoken.parent)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: standard output: No space left on device\n",
    )


@pytest.mark.parametrize("words", ["convert none", "quantize none"])
def test_outputs_are_looked_at_first(words: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    kind = "Q4_0" if words.startswith("quantize") else ""
    done = shell(f"$gpukit {words} pipe {kind}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: pipe: a pipe; name the file to write\n"
    done = shell(f"$gpukit {words} pipe {kind} --dry-run", tmp_path)
    assert "none" in done.stderr


def test_an_importance_matrix_is_no_output(tmp_path: Path) -> None:
    matrix = struct.pack("<ii1siif", 1, 1, b"a", 1, 1, 1.0)
    (tmp_path / "i.dat").write_bytes(matrix)
    done = shell(f"$gpukit convert {TINY} i.dat --imatrix i.dat", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: i.dat: input and output are the same file")
    assert (tmp_path / "i.dat").read_bytes() == matrix
