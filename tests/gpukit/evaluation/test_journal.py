"""Journals: what a killed run wrote is taken up, what is of another run is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpukit.errors import ArgumentError, DiskError, FormatError
from gpukit.evaluation.journal import Journal
from gpukit.evaluation.scoring import Scores

OF = {"num_ctx": 32, "model 1": {"files": [["a.gguf", 17, 1]]}}
ONE = Scores(np.array([0.1, 1 / 3, 1e-300]))
TWO = Scores(np.array([1.5]), np.array([1.25]), np.array([1e-9]), np.array([True]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    with Journal(path, "1", OF) as journal:
        assert journal.known("0", 0) is None
        journal.add("0", 0, ONE)
        journal.add("1", 4, TWO)
    return path


def test_what_was_found_is_there_again_to_the_last_bit(path: Path) -> None:
    with Journal(path, "1", OF) as journal:
        one, two = journal.known("0", 0), journal.known("1", 4)
        assert journal.known("0", 4) is None
    assert one is not None
    assert one.nll.tolist() == ONE.nll.tolist()
    assert one.kld is None
    assert two is not None
    assert two.kld is not None
    assert two.same_top is not None
    assert (two.kld.tolist(), two.same_top.tolist()) == ([1e-9], [True])


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_is_written_anew(path: Path, cut: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path, "1", OF) as journal:
        assert journal.known("0", 0) is not None
        assert journal.known("1", 4) is None
        journal.add("1", 4, TWO)
    assert path.read_bytes() == whole


def test_a_head_that_was_cut_is_written_anew(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9])
    with Journal(path, "1", OF) as journal:
        journal.add("0", 0, ONE)
    assert len(path.read_bytes().splitlines()) == 2


def test_another_run_is_refused_and_the_journal_stays(path: Path) -> None:
    before = path.read_bytes()
    for version, of, why in (
        ("1", {**OF, "num_ctx": 64}, "num_ctx is 32 there and 64 here"),
        ("2", OF, 'version is "1" there and "2" here'),
        ("1", {**OF, "model 2": {}}, "model 2 is null there"),
        ("1", {**OF, "model 1": {"files": [["b" * 90, 17, 2]]}}, "model 1 is another"),
    ):
        with pytest.raises(ArgumentError, match=f"journal of another run: {why}.*name another"):
            Journal(path, version, of)
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_refused_and_stays(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    for data in (b"to be or not\n", b"to be or not", b"[1]\n", b'{"journal": "x"}\n', b"\xff\n"):
        text.write_bytes(data)
        with pytest.raises(FormatError, match="line 1 is none of a journal"):
            Journal(text, "1", OF)
        assert text.read_bytes() == data
    lines = path.read_bytes().splitlines(keepends=True)
    bad = (
        {"part": "0"},
        {"part": "0", "chunk": "x", "nll": []},
        {"part": "0", "chunk": 1},
        {"part": "0", "chunk": 1, "nll": [1], "nll_base": [1, 2], "kld": [1], "same_top": [1]},
    )
    for document in bad:
        path.write_bytes(b"".join([*lines, json.dumps(document).encode(), b"\n"]))
        with pytest.raises(FormatError, match="line 4 is none"):
            Journal(path, "1", OF)


def test_two_runs_do_not_share_a_journal(path: Path) -> None:
    with Journal(path, "1", OF):  # noqa: SIM117
        with pytest.raises(ArgumentError, match="another run writes this journal"):
            Journal(path, "1", OF)
    Journal(path, "1", OF).close()


def test_a_journal_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        Journal(tmp_path / "none" / "run.jsonl", "1", OF)
