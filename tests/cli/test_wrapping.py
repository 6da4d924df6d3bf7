"""Answers are broken between words, however they come."""

import pytest

from gpukit_cli import wrapping
from gpukit_cli.wrapping import Wrapper, columns

TEXT = "The quick brown fox\njumps over  the lazy dog,\n\n  and sleeps."


def _wrapped(text: str, size: int) -> str:
    wrapper = Wrapper()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return "".join(map(wrapper.push, pieces)) + wrapper.flush()


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "terminal_width", lambda: 12)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_pieces_do_not_matter(size: int) -> None:
    wanted = "The quick\nbrown fox\njumps over\nthe lazy\ndog,\n\n  and\nsleeps."
    assert _wrapped(TEXT, size) == wanted


def test_a_line_that_is_just_full() -> None:
    assert _wrapped("twelve wide! and more", 4) == "twelve wide!\nand more"
    assert _wrapped("twelve wide!\nand", 4) == "twelve wide!\nand"


def test_words_wider_than_the_terminal_are_not_held_back() -> None:
    wrapper = Wrapper()
    assert wrapper.push("a" * 11) == ""
    assert wrapper.push("a") == "a" * 12
    assert wrapper.push("b c") == "b"
    assert _wrapped("x" * 30, 5) == "x" * 30


def test_wide_letters_take_two_columns() -> None:
    assert (columns("日本"), columns("é"), columns("e\u0301"), columns("🙂")) == (4, 1, 1, 2)
    assert _wrapped("日本 日本 日本 日本", 1) == "日本 日本\n日本 日本"


def test_without_a_width_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "terminal_width", lambda: 0)
    assert _wrapped(TEXT, 3) == TEXT
