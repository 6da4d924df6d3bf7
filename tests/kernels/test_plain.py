"""The CPU without torch: what arrays hold, what of a type is known, and who imports torch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gpukit_kernels import QUANTS, QuantError, type_facts
from gpukit_kernels.cpu import plain

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


def test_facts_are_the_tables() -> None:
    assert list(type_facts()) == list(QUANTS)
    for name, row in QUANTS.items():
        facts = type_facts()[name]
        assert row.facts is facts
        assert (row.encode is not None) == (facts.encodable and not facts.needs_importance)
        assert (row.weighted is not None) == facts.takes_importance
    with pytest.raises(QuantError, match=r"rows of 100 are no multiple of 256 \(Q4_K\)"):
        type_facts()["Q4_K"].row_bytes(100)


def test_names_load_what_they_need() -> None:
    code = (
        "import sys, gpukit_kernels as kernels\n"
        "from gpukit_kernels import facts\n"
        "from gpukit_kernels.cpu import plain, program, cache\n"
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
