"""One tree of errors: those of the kernels are in it, and the tree that is drawn is the tree."""

import re

import pytest
import torch

import gpukit_kernels as kernels
from gpukit import errors
from gpukit.errors import ArgumentError, GpukitError


def _descendants(kind: type[GpukitError], depth: int = 0) -> list[tuple[int, str]]:
    below = [_descendants(each, depth + 1) for each in kind.__subclasses__()]
    return [(depth, kind.__name__), *(row for rows in below for row in rows)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+Error)(?:  |$)", errors.__doc__ or "", re.MULTILINE)
    rows = {(len(branch) // 4, name) for branch, name in drawn}
    assert rows == set(_descendants(GpukitError))
    assert {name for _, name in rows} == {name for name in errors.__all__ if name[0].isupper()}


def test_what_the_kernels_refuse_is_caught_as_any_other_fault() -> None:
    for request in (
        lambda: kernels.quantize(torch.zeros(2, 100), "Q4_K"),
        lambda: kernels.by_name("Q9"),
        lambda: kernels.device("gpu"),
    ):
        with pytest.raises(GpukitError) as caught:
            request()
        assert isinstance(caught.value, ArgumentError)
        assert caught.value.exit_code == 2


def test_a_message_stays_one_short_line() -> None:
    assert str(kernels.QuantError("a\nb\x1b[0m")) == r"a\nb\x1b[0m"
    assert len(str(GpukitError("x" * 100_000))) < 2100
