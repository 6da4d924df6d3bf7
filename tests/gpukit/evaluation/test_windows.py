"""Texts cut into windows, as llama-perplexity cuts them."""

from pathlib import Path

import pytest
from support.checkpoints import DATA

from gpukit.errors import ArgumentError, DiskError
from gpukit.evaluation.windows import Windows, cut, cut_ids, read_text, text_ids
from gpukit.sources.opening import open_source
from gpukit.tokenizer import Tokenizer

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with open_source(DATA / "tiny-shakespeare") as source:
        return Tokenizer.from_fields({field.key: field for field in source.fields})


def test_windows_follow_each_other_and_the_rest_is_dropped(tokenizer: Tokenizer) -> None:
    ids = text_ids(TEXT, tokenizer)
    windows = cut(TEXT, tokenizer, 16)
    assert len(windows) == len(ids) // 16
    assert windows.ids.ravel().tolist() == ids[: len(windows) * 16]
    assert windows.first == 8
    assert windows.scored == 7
    assert windows.inputs(1) == [tokenizer.bos_id, *ids[17:32]]
    assert windows.targets(1) == ids[25:32]
    assert list(windows) == [windows.inputs(number) for number in range(len(windows))]
    assert windows.ids[1, 0] == ids[16]


def test_an_odd_window_scores_one_less_than_its_half() -> None:
    windows = cut_ids(range(20), None, 7)
    assert (windows.first, windows.scored) == (3, 3)
    assert windows.targets(1) == [11, 12, 13]
    assert windows.inputs(1) == [7, 8, 9, 10, 11, 12, 13]


def test_the_smallest_window_scores_one_token() -> None:
    windows = cut_ids(range(6), 9, 3)
    assert [windows.targets(n) for n in range(2)] == [[2], [5]]
    with pytest.raises(ArgumentError, match="num_ctx is 2; windows have 3 tokens at least"):
        cut_ids(range(6), 9, 2)


def test_one_newline_at_the_end_is_dropped_and_no_more(tokenizer: Tokenizer) -> None:
    assert text_ids("a b\n", tokenizer) == text_ids("a b", tokenizer)
    assert len(text_ids("a b\n\n", tokenizer)) > len(text_ids("a b", tokenizer))
    assert text_ids("", tokenizer) == text_ids("\n", tokenizer) == [tokenizer.bos_id]


def test_control_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id not in text_ids("a </s> b", tokenizer)


def test_an_eos_that_the_vocabulary_adds_is_left_out(tokenizer: Tokenizer) -> None:
    plain = text_ids(TEXT, tokenizer)
    tokenizer.add_eos = True
    try:
        assert tokenizer.encode(TEXT)[-1] == tokenizer.eos_id
        assert text_ids(TEXT, tokenizer) == plain
    finally:
        tokenizer.add_eos = False


def test_chunks_are_a_limit() -> None:
    assert len(cut_ids(range(100), None, 10, chunks=3)) == 3
    assert len(cut_ids(range(100), None, 10, chunks=300)) == 10
    with pytest.raises(ArgumentError, match="chunks is 0; at least 1 is needed"):
        cut_ids(range(100), None, 10, chunks=0)


def test_a_short_text_is_refused_with_both_numbers_and_a_remedy() -> None:
    with pytest.raises(ArgumentError, match=r"39 tokens; two windows of 20 .* 40.*-ctx 19 or"):
        cut_ids(range(39), None, 20)
    assert len(cut_ids(range(39), None, 19)) == 2
    assert len(cut_ids(range(40), None, 20)) == 2
    with pytest.raises(ArgumentError, match=r"^the text has 1 token;.*give a longer text$"):
        cut_ids([1], None, 512)
    for ids, bos in (([], None), ([1], 1)):
        with pytest.raises(ArgumentError, match=r"^a\.txt: the text is empty; two windows of 512"):
            cut_ids(ids, bos, 512, where="a.txt")
    with pytest.raises(ArgumentError, match=r"give a longer text$"):
        cut_ids(range(39), None, 20, option="")


def _strided(count: int, num_ctx: int, stride: int) -> Windows:
    return cut_ids(range(count), 99, num_ctx, stride=stride)


@pytest.mark.parametrize("count", [20, 21, 22, 23, 24, 25])
def test_a_stride_scores_each_token_once(count: int) -> None:
    windows = _strided(count, 10, 4)
    assert windows.bos is None
    assert windows.inputs(1) == list(range(4, 14))
    scored = [id for number in range(len(windows)) for id in windows.targets(number)]
    assert scored == list(range(6, 6 + len(scored)))
    # llama-perplexity's count, but for a window that would end behind the text.
    assert len(windows) == min((count - 10 + 3) // 4, (count - 10) // 4 + 1)


def test_a_stride_fits_into_the_window() -> None:
    for stride in (0, -1, 10):
        with pytest.raises(ArgumentError, match=f"stride is {stride}; from 1 to 9 tokens"):
            _strided(40, 10, stride)
    assert _strided(40, 10, 9).targets(0) == list(range(1, 10))


def test_a_text_is_read_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a\r\nb\n")
    assert read_text(path) == "a\r\nb\n"
    path.write_bytes(b"abc\xff")
    with pytest.raises(ArgumentError, match="byte 3 is no UTF-8"):
        read_text(path)
    with pytest.raises(ArgumentError, match="No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(ArgumentError, match="Is a directory"):
        read_text(tmp_path)
    with pytest.raises((ArgumentError, DiskError)):
        read_text(path / "below")
