"""Logits files: llama.cpp's own is read, ours are the same, and a hostile one is refused.

golden/llama-cpp-logits.dat is what llama-perplexity (llama.cpp 0c1e5709) wrote of tiny-shakespeare
as F32: -f shakespeare.txt -c 32 -b 32 --chunks 2 -ctk f32 -ctv f32 -fa off
--kl-divergence-base FILE.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import DATA

from gpukit.errors import DiskError, FormatError
from gpukit.formats.logits import LogitsFile, Shape, encoded, is_logits, writing

PEER = DATA / "golden" / "llama-cpp-logits.dat"


def _logits(rows: int, vocab: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(0, 4, (rows, vocab)).astype(np.float32)
    top = x.max(-1, keepdims=True)
    return x, np.log(np.exp((x - top).astype(np.float64)).sum(-1)).astype(np.float32)


def test_llama_cpps_file_is_read() -> None:
    with LogitsFile(PEER) as file:
        assert file.shape == Shape(32, 2048, 2)
        assert file.ids.shape == (2, 32)
        assert file.ids[0, 0] == 1  # BOS, since the text begins there
        found = file.log_probabilities(1, 0, 15)
        assert found.shape == (15, 2048)
        # Probabilities, but for what the codes lose.
        np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(-1), 1, atol=3e-4)
        assert np.array_equal(file.log_probabilities(1, 3, 5), found[3:8])


@pytest.mark.parametrize("vocab", [2, 7, 64, 301])
def test_codes_are_within_half_a_step(vocab: int, tmp_path: Path) -> None:
    path = tmp_path / "logits"
    ids = np.arange(2 * 9, dtype=np.int32).reshape(2, 9) % vocab
    x, log_sum = _logits(2 * 4, vocab)
    with writing(path, ids, vocab) as writer:
        writer.add(x[:3], log_sum[:3])
        writer.add(x[3:], log_sum[3:])
    assert path.stat().st_size == Shape(9, vocab, 2).size
    with LogitsFile(path) as file:
        assert np.array_equal(file.ids, ids)
        found = np.concatenate([file.log_probabilities(n, 0, 4) for n in range(2)])
    top = x.max(-1, keepdims=True)
    exact = np.maximum(x, top - 16) - top - log_sum[:, None]
    # Half a step of at most 16 / 65535, and the rounding of float32.
    assert np.abs(found - exact).max() <= 8 / 65535 + 1e-5
    assert (found.argmax(-1) == x.argmax(-1)).all()


def test_records_are_those_of_the_format() -> None:
    x, log_sum = _logits(3, 5)
    x[0, 2] = -50  # more than 16 below the largest
    rows = encoded(x, log_sum)
    assert rows.shape == (3, 2 * 3 + 4)
    for row, logits, total in zip(rows, x, log_sum, strict=True):
        low = np.float32(max(logits.min(), logits.max() - 16))
        step, least = struct.unpack("<ff", row[:4].tobytes())
        assert step == np.float32((logits.max() - low) / np.float32(65535))
        assert least == np.float32(low - logits.max() - total)
        codes = [0 if v <= low else int(np.rint((np.float32(1) / np.float32(step)) * (v - low)))
                 for v in logits]  # fmt: skip
        assert row[4:9].tolist() == codes
        assert row[9] == 0  # the number of tokens is odd
    assert rows[0, 4 + 2] == 0


def test_logits_that_are_all_one_have_no_step() -> None:
    row = encoded(np.zeros((1, 4), np.float32), np.log(np.float32([4])))
    assert row[0, 4:].tolist() == [0] * 4
    assert row[0, :4].tobytes() == struct.pack("<ff", 0, -np.log(np.float32(4)))


def _unfinished(path: Path, error: type[BaseException] | None) -> None:
    with writing(path, np.zeros((1, 9), np.int32), 4) as writer:
        writer.add(*_logits(2, 4))
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_a_file_that_is_not_finished_does_not_appear(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    with pytest.raises(error or AssertionError):
        _unfinished(tmp_path / "logits", error)
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_told_of_before_anything_is_written(small_disk: Path) -> None:
    ids = np.zeros((100, 512), np.int32)
    with pytest.raises(DiskError, match="bytes are needed"), writing(small_disk / "x", ids, 4096):
        pass
    assert list(small_disk.iterdir()) == []


def _changed(tmp_path: Path, at: int, data: bytes) -> Path:
    whole = bytearray(PEER.read_bytes())
    whole[at : at + len(data)] = data
    path = tmp_path / "bad.dat"
    path.write_bytes(whole)
    return path


def _int(value: int) -> bytes:
    return struct.pack("<i", value)


@pytest.mark.parametrize(
    ("at", "data", "why"),
    [
        (0, b"_logitz_", "no logits file"),
        (8, _int(0), "windows of 0 tokens"),
        (8, _int(-32), "windows of -32 tokens"),
        (8, _int(2), "windows of 2 tokens"),
        (8, _int(2**31 - 1), "cut off: 123396 bytes, its header says"),
        (12, _int(0), "0 of a vocabulary"),
        (12, _int(-1), "-1 of a vocabulary"),
        (12, _int(2**31 - 1), "cut off"),
        (12, _int(2046), "too long: 123396 bytes, its header says 123276"),
        (16, _int(0), "0 chunks"),
        (16, _int(-2), "-2 chunks"),
        (16, _int(2**31 - 1), "cut off"),
        (16, _int(1), "too long"),
        (20, _int(2048), "token 0 is 2048, the vocabulary has 2048"),
        (24, _int(-1), "token 1 is -1"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, at: int, data: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why) as caught:
        LogitsFile(_changed(tmp_path, at, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_without_numbers_is_refused(tmp_path: Path, value: float) -> None:
    path = _changed(tmp_path, Shape(32, 2048, 2).start, struct.pack("<f", value))
    with LogitsFile(path) as file:
        with pytest.raises(FormatError, match="chunk 1: a record begins with"):
            file.log_probabilities(0, 0, 15)
        assert np.isfinite(file.log_probabilities(1, 0, 15)).all()


@pytest.mark.parametrize("size", [0, 7, 8, 19, 20, 200, 100_000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.dat"
    path.write_bytes(PEER.read_bytes()[:size])
    with pytest.raises(FormatError, match="cut off"):
        LogitsFile(path)
    assert is_logits(path) == (size >= 8)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert not is_logits(path)
        with pytest.raises(FormatError, match="a logits file is needed"):
            LogitsFile(path)
