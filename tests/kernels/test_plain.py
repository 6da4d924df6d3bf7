"""The CPU without torch: what arrays hold, what of a type is known, and who imports torch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpukit_kernels import QUANTS, QuantError, cache, facts, plain, type_facts

HARD = [0.0, -0.0, 1.5, -3e38, 1e-45, 65504.0, float("inf"), -float("inf"), float("nan")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 7, plain.LOOK - 1, plain.LOOK, plain.LOOK + 1])
def test_the_largest_magnitude(dtype: torch.dtype, length: int) -> None:
    values = torch.randn(length, generator=torch.Generator().manual_seed(0)).to(dtype)
    for hard in HARD:
        for at in (0, length // 2, length - 1):
            given = values.clone()
            given[at] = hard
            array = (given.view(torch.uint16) if dtype is torch.bfloat16 else given).numpy()
            wanted = float(given.abs().max())  # NaN where there is one
            np.testing.assert_equal(plain.largest(array), wanted)
            np.testing.assert_array_equal(plain.as_float32(array), given.float().numpy())


def test_the_largest_of_nothing() -> None:
    assert plain.largest(np.empty((3, 0), np.float32)) == 0.0


def test_a_mean_adds_up_one_after_the_other() -> None:
    values = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    wanted = []
    for row in values:
        total = np.float32(0)
        for x in row:
            total += x * x
        wanted += [total / np.float32(512)] * 2
    assert plain.block_means(values, 2, True).tolist() == wanted
    assert plain.block_means(values, 2, False).tolist() == [0] * 10


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    facts.type_facts.cache_clear()
    yield cache.place("types")
    facts.type_facts.cache_clear()


@pytest.mark.parametrize("damage", [None, b"", b"[", b"{}", b'[{"name": "Q4_0"}]', b"\xff\x00"])
def test_facts_are_the_tables(damage: bytes | None, fresh: Path) -> None:
    if damage is not None:
        fresh.write_bytes(damage)
    wanted = {name: row.facts for name, row in QUANTS.items()}
    assert dict(type_facts()) == wanted
    facts.type_facts.cache_clear()
    assert dict(type_facts()) == wanted  # from the file
    assert list(type_facts()) == list(QUANTS)
    with pytest.raises(QuantError, match=r"rows of 100 are no multiple of 256 \(Q4_K\)"):
        type_facts()["Q4_K"].row_bytes(100)


def test_a_cache_that_cannot_be_written_means_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "file" / "folder")
    facts.type_facts.cache_clear()
    assert len(type_facts()) == len(QUANTS)
    facts.type_facts.cache_clear()


def test_names_load_what_they_need() -> None:
    code = (
        "import sys, gpukit_kernels as kernels\n"
        "from gpukit_kernels import plain, program, facts, cache\n"
        "assert 'torch' not in sys.modules\n"
        "for name in kernels.__all__: getattr(kernels, name)\n"
        "assert callable(kernels.lanes) and callable(kernels.matmul)\n"
        "assert set(kernels.__all__) <= set(dir(kernels))\n"
        "try: kernels.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: sys.exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_the_cpu_for_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    for nvidia, amd, auto in (
        ("no-such-library.so", "/no/such/device", True),
        ("libc.so.6", "/no/such/device", False),
        ("no-such-library.so", "/dev/null", False),
    ):
        monkeypatch.setattr(plain, "NVIDIA_DRIVER", nvidia)
        monkeypatch.setattr(plain, "AMD_DRIVER", amd)
        assert plain.is_cpu("cpu")
        assert plain.is_cpu("auto") is auto
        assert not any(map(plain.is_cpu, ("cuda", "cuda:1", "cpu,cpu", "x")))


@pytest.mark.parametrize("asked", ["3", "0", "x", ""])
def test_threads_are_those_of_torch(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    cores = len(os.sched_getaffinity(0))
    assert plain.cpu_threads() == (3 if asked == "3" else cores)


def test_many_threads_do_every_part_once_and_raise_the_first_fault() -> None:
    seen: list[tuple[int, int]] = []
    plain.spread(lambda start, stop: seen.append((start, stop)), 103, 10, 4)
    assert sorted(seen) == [(i, min(i + 10, 103)) for i in range(0, 103, 10)]

    def fails(start: int, _stop: int) -> None:
        if start == 50:
            raise ValueError("50")

    for threads in (1, 4):
        with pytest.raises(ValueError, match="50"):
            plain.spread(fails, 103, 10, threads)
