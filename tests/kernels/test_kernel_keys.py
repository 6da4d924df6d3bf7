"""A kernel's key changes with whatever its machine code is made of, and with nothing else."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gpukit_kernels import QUANTS, QuantError, bits_triton, launch, resource_table
from gpukit_kernels.kernel_keys import key
from gpukit_kernels.launched import Kernel, kernels

TEXT = '''"""A module."""

import triton
import triton.language as tl

import {helpers} as helpers

STEP = tl.constexpr(4)


@triton.jit
def work_kernel(values, out, count, SIZE: tl.constexpr):
    """What it does."""
    at = tl.arange(0, SIZE)
    v = tl.load(values + at, mask=at < count, other=0.0)
    tl.store(out + at, helpers.twice(v) * STEP + helpers.MORE, mask=at < count)
'''
HELPERS = """import triton
import triton.language as tl

MORE = tl.constexpr(1)


@triton.jit
def twice(v):
    return halved(v) * 4


@triton.jit
def halved(v):
    return v / 2  # exact
"""
NUMBER = count()


@pytest.fixture(autouse=True)
def modules_go(tmp_path: Path) -> Iterator[None]:
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("keyed_"):
            del sys.modules[name]


def loaded(name: str, text: str, folder: Path) -> Any:
    path = folder / f"{name}_{next(NUMBER)}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel(folder: Path, text: str = TEXT, helpers: str = HELPERS) -> Kernel:
    """The kernel of `text`, in modules that have the same names each time."""
    loaded("keyed_helpers", helpers, folder)
    function = loaded("keyed_kernel", text.format(helpers="keyed_helpers"), folder).work_kernel
    pointers = {"values": "*fp32", "out": "*fp32"}
    return Kernel("work", function, pointers, ("count",), {"SIZE": 16}, True)


def test_text_of_no_meaning_and_its_place_do_not_count(tmp_path: Path) -> None:
    wanted = key(kernel(tmp_path))
    assert len(wanted) == 16
    moved = TEXT.replace("STEP =", "# more lines\n\nOTHER = 7\nSTEP =").replace("What it", "As it")
    assert key(kernel(tmp_path, moved)) == wanted
    assert key(kernel(tmp_path, TEXT, HELPERS.replace("  # exact", ""))) == wanted
    assert key(replace(kernel(tmp_path), name="other")) == wanted


@pytest.mark.parametrize(
    ("old", "new"),
    [("* 4", "* 5"), ("v / 2", "v / 3"), ("MORE = tl.constexpr(1)", "MORE = tl.constexpr(2)"),
     ("MORE = tl.constexpr(1)", "MORE = tl.constexpr(1.0)")],
)  # fmt: skip
def test_whatever_it_calls_and_reads_counts(old: str, new: str, tmp_path: Path) -> None:
    assert old in HELPERS
    other = kernel(tmp_path, TEXT, HELPERS.replace(old, new))
    assert key(other) != key(kernel(tmp_path))


@pytest.mark.parametrize(
    ("old", "new"),
    [("other=0.0", "other=1.0"), ("constexpr(4)", "constexpr(8)"), ("at < count", "at <= count"),
     ("@triton.jit\ndef work", "@triton.jit(noinline=True)\ndef work")],
)  # fmt: skip
def test_its_own_text_and_constants_count(old: str, new: str, tmp_path: Path) -> None:
    assert old in TEXT
    assert key(kernel(tmp_path, TEXT.replace(old, new))) != key(kernel(tmp_path))


def test_what_a_launcher_gives_counts(tmp_path: Path) -> None:
    plain = kernel(tmp_path)
    others = [
        replace(plain, constants={"SIZE": 32}),
        replace(plain, constants={"SIZE": 16.0}),
        replace(plain, pointers={"values": "*fp16", "out": "*fp32"}),
        replace(plain, aligned=("count",)),
        replace(plain, warps=8),
        replace(plain, stages=2),
        replace(plain, exact=False),
    ]
    assert len({key(each) for each in [plain, *others]}) == len(others) + 1


def test_functions_among_its_constants_and_in_its_module_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = next(k for k in kernels(QUANTS["Q8_0"], ["bf16"]) if k.name.endswith("decode bf16"))
    before = key(decode)
    assert key(replace(decode, constants={**decode.constants, "NBYTES": 35})) != before
    other = launch.triton_pair(QUANTS["Q4_0"]).decode
    assert key(replace(decode, constants={**decode.constants, "DECODE": other})) != before
    monkeypatch.setattr(launch, "store_float_tl", bits_triton.store_word16_tl)
    assert key(decode) != before


def test_what_no_key_can_tell_is_an_error(tmp_path: Path) -> None:
    strange = replace(kernel(tmp_path), constants={"SIZE": object()})
    with pytest.raises(QuantError, match="SIZE is a object: a key of a kernel cannot have it"):
        key(strange)


def test_kernels_that_differ_have_different_keys() -> None:
    # Lengths are those of floats, whatever comes out, and means those of values.
    same = ("merge lengths", "mean squares")
    every = [k for k in resource_table.all_kernels() if not any(what in k.name for what in same)]
    assert len({key(each) for each in every}) == len(every)
